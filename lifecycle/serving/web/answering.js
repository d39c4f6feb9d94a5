// Answers on their way: asks the server, keeps what arrives in the answer's message, and says how it ended.
//
// What must hold: what has arrived stays, however the answer ends. An answer goes on while its conversation is not the
// one on the page.

import { answer, ApiError, rest } from "./api.js";

const SAVE_EVERY_MS = 2000;  // a browser that crashes loses no more
const EXCEEDED = "context_length_exceeded";

export class Answering {
  running = new Map();  // by the answer's id: { controller, conversation }

  /** `key()` is the API key, `context(model)` how many tokens a model takes, `firstModel()` the one that is asked if
   * the server's were not known yet; `save(chat, nodes)` keeps messages, and `changed(chat, node)` shows one. */
  constructor({ key, context, firstModel, save, changed }) {
    Object.assign(this, { key, context, firstModel, save, changed });
  }

  isRunning(node) {
    return this.running.has(node.id);
  }

  /** The conversation, if one of its answers is on its way. */
  busy(id) {
    return [...this.running.values()].find(({ conversation }) => conversation.head.id === id)?.conversation ?? null;
  }

  /** Ends a conversation's answers; the server stops working on them. */
  stop(conversation) {
    for (const run of this.running.values()) if (run.conversation === conversation) run.controller.abort();
  }

  /** Asks for an answer, from its beginning or for the rest of it. */
  async run(conversation, node, goesOn = false) {
    const run = { controller: new AbortController(), conversation };
    this.running.set(node.id, run);
    if (!goesOn) Object.assign(node, { text: "", reasoning: "", tokens: [], seconds: 0, first_s: null });
    const limit = conversation.settings.max_tokens;
    Object.assign(node, { count: 0, limit, reason: null, end: null, failure: null });
    this.changed(conversation, node);
    const failure = await this.attempt(run, node, goesOn);
    this.running.delete(node.id);
    Object.assign(node, outcome(failure, node));
    this.changed(conversation, node);
    await this.save(conversation, [node]);
  }

  /** What ended it early, or null. Leaves out the oldest turns of a full context, if the user has agreed to that. */
  async attempt(run, node, goesOn) {
    const { conversation } = run;
    for (;;) {
      try {
        await this.receive(run, node, goesOn);
        return null;
      } catch (error) {
        const asksTooMuch = conversation.settings.max_tokens >= this.context(node.model);
        const drops = error.code === EXCEEDED && conversation.head.drops && !asksTooMuch;
        if (!drops || !conversation.dropOldest(conversation.parent(node))) return error;
      }
    }
  }

  async receive({ controller, conversation }, node, goesOn) {
    const began = performance.now(), before = { count: 0, seconds: node.seconds, saved: began };
    const messages = conversation.messages(conversation.parent(node));
    node.model ||= await this.firstModel();
    const body = {
      model: node.model, messages, hasLogprobs: conversation.settings.logprobs, ...conversation.sampling(),
    };
    const ask = goesOn ? rest({ ...body, begun: node.text }, this.key(), controller.signal)
      : answer(body, this.key(), controller.signal);
    for await (const part of ask) {
      add(node, part, before, (performance.now() - began) / 1000);
      this.changed(conversation, node);
      if (performance.now() - before.saved > SAVE_EVERY_MS) {
        before.saved = performance.now();
        this.save(conversation, [node]);
      }
    }
  }
}

/** Adds what is new; `seconds` since the question was sent, `before` that. */
function add(node, part, before, seconds) {
  before.count = part.count ?? before.count;
  node.text += part.text;
  node.reasoning += part.reasoning;
  node.tokens.push(...part.tokens);
  if (part.text || part.reasoning) node.first_s ??= seconds;
  if (part.usage) Object.assign(node, { count: before.count + part.usage.completion_tokens });
  node.seconds = before.seconds + seconds;
  node.version = part.version ?? node.version;
  node.reason = part.end ?? node.reason;
}

/** How it ended: `stop` and `length` as the server says, `stopped` by the user, or `failed`. */
function outcome(error, node) {
  if (error === null) return { end: node.reason };
  if (error.name === "AbortError") return { end: "stopped" };
  if (!(error instanceof ApiError)) console.error(error);  // a fault of the page's own
  const { message, status = 0, code = null, wait = 0 } = error;
  return { end: "failed", failure: { message, status, code, until: wait ? Date.now() + wait * 1000 : 0 } };
}
