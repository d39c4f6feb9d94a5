// Conversations as files: Markdown to read, JSON to bring back.
//
// What must hold: a file that is brought in changes no conversation that is there. Its messages get new ids, and of
// what it says only the fields that are known here, with the values that they may have, are taken.

import { Conversation, SETTINGS } from "./conversation.js";

const TEXTS = ["text", "reasoning", "model", "version", "end"], NUMBERS = ["count", "seconds", "first_s", "limit"];
const PARENTS = { user: ["assistant", undefined], assistant: ["user"] };  // the role above; a first message has none

/** The shown branch as Markdown. */
export function markdown(conversation) {
  const parts = [`# ${conversation.head.title}`];
  if (conversation.settings.system) parts.push("## System", conversation.settings.system);
  for (const node of conversation.path()) parts.push(`## ${node.role === "user" ? "User" : node.model}`, node.text);
  return `${parts.join("\n\n")}\n`;
}

/** All of a conversation, every version of its messages, as JSON. */
export function json(conversation) {
  return JSON.stringify({ conversation: conversation.head, messages: [...conversation.nodes.values()] }, null, 1);
}

/** A new conversation with the content of such JSON; null if it is not one. */
export function imported(text) {
  const { conversation: head, messages } = parsed(text);
  if (typeof head?.title !== "string" || !Array.isArray(messages)) return null;
  const own = Conversation.begin(settings(head.settings ?? {}));
  const made = new Map();  // by the id in the file
  for (const message of [...messages].sort((a, b) => a?.created - b?.created)) {
    const parent = made.get(message?.parent);
    if (typeof message?.text !== "string" || !PARENTS[message.role]?.includes(parent?.role)) return null;
    made.set(message.id, own.add(parent ?? null, { ...fields(message), role: message.role }));
  }
  for (const id of Object.values(head.chosen ?? {})) if (made.has(id)) own.choose(made.get(id));
  Object.assign(own.head, { title: head.title, from: made.get(head.from)?.id ?? null });
  return made.size ? own : null;
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

function settings(given) {
  const isFit = (name) => typeof given[name] === typeof (SETTINGS[name] ?? 0);
  return Object.fromEntries(Object.keys(SETTINGS).map((name) => [name, isFit(name) ? given[name] : SETTINGS[name]]));
}

function fields(message) {
  const known = { text: "", reasoning: "", model: "", end: null, failure: null, seconds: 0, first_s: null };
  for (const name of TEXTS) if (typeof message[name] === "string") known[name] = message[name];
  for (const name of NUMBERS) if (typeof message[name] === "number") known[name] = message[name];
  return { ...known, tokens: (Array.isArray(message.tokens) ? message.tokens : []).filter(isToken) };
}

const isRated = (pair) => typeof pair?.[0] === "string" && typeof pair[1] === "number";

const isToken = (token) => (
  isRated([token?.text, token?.logprob]) && Array.isArray(token.others) && token.others.every(isRated)
);
