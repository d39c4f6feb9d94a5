// The chat page: a conversation with a served model.
//
// What must hold: no text of the user's is lost. A message that fails stays in its turn, which can be tried again or
// edited; what had arrived of a broken answer stays too. Only turns with an answer are part of the conversation.

import { answer, models } from "./api.js";
import { make } from "./markdown.js";
import { problem, Turn } from "./turn.js";

const $ = (id) => document.getElementById(id);
const empty = $("empty");
const boundary = make("p", "The model no longer sees what is above: with it, the conversation exceeds the context.");
boundary.className = "note boundary";

let chat = newChat();
let running = null;  // stops the answer that is on its way
let cards = new Map();  // of the served models, by name

/** `turns` are in the conversation, `last` is on the page; `drops`: the user agreed to lose the oldest turns. */
function newChat() {
  return { turns: [], last: null, drops: false };
}

async function loadModels() {
  const served = await models($("key").value);
  cards = new Map(served.map((card) => [card.id, card]));
  const chosen = $("model").value;
  $("model").replaceChildren(...served.map(({ id }) => new Option(id, id, false, id === chosen)));
}

async function start() {
  $("notice").replaceChildren();
  try {
    await loadModels();
  } catch (error) {
    if (error.status === 401) askForKey();
    $("notice").replaceChildren(problem(error.message, [["Try again", start]]));
  }
}

function askForKey() {
  $("key-label").hidden = false;
  $("key").focus();
}

function say(text) {
  empty.remove();
  chat.last?.settle();
  chat.last = new Turn($("log"), $("scroll"), text);
  attempt(chat.last);
}

/** Asks for a turn's answer; also once more, after a failure. */
async function attempt(turn) {
  const own = chat;
  own.turns = own.turns.filter((other) => other !== turn);
  turn.clear();
  const error = await run(own, turn);
  if (turn.answer) own.turns.push(turn);
  if (error && own === chat) explain(turn, error);  // "New chat" may have replaced it
}

/** Receives an answer; returns what ended it early. */
async function run(own, turn) {
  running = new AbortController();
  showRunning(true);
  try {
    await receive(own, turn, running.signal);
    return null;
  } catch (error) {
    turn.draw();
    return error;
  } finally {
    running = null;
    showRunning(false);
  }
}

async function receive(own, turn, signal) {
  if (!$("model").value) await loadModels();
  const model = $("model").value, began = performance.now();
  const messages = [...own.turns.flatMap(said), { role: "user", content: turn.text }];
  const end = { version: cards.get(model)?.version };
  for await (const part of answer({ model, messages, ...sampling() }, $("key").value, signal)) {
    turn.add(part.text);
    for (const name of ["reason", "usage", "version"]) end[name] = part[name] ?? end[name];
  }
  turn.draw();
  turn.note(ending(end, (performance.now() - began) / 1000));
  $("status").textContent = turn.answer;
}

const said = (turn) => [{ role: "user", content: turn.text }, { role: "assistant", content: turn.answer }];

function sampling() {
  const settings = {};
  if ($("temperature").value !== "") settings.temperature = $("temperature").valueAsNumber;
  if ($("max-tokens").value !== "") settings.max_tokens = $("max-tokens").valueAsNumber;
  return settings;
}

/** The line under an answer. */
function ending({ usage, reason, version }, seconds) {
  const parts = [];
  const tokens = usage?.completion_tokens;
  if (usage) parts.push(`${(tokens / seconds).toFixed(0)} tokens/s`, `${tokens} tokens`);
  if (reason === "length") parts.push($("max-tokens").value ? "ended at Max tokens" : "ended: the context is full");
  if (version) parts.push(`version ${version.slice(0, 12)}`);
  return parts.join(" · ");
}

function explain(turn, error) {
  const again = ["Try again", () => attempt(turn)], edit = ["Edit message", () => takeBack(turn)];
  if (error.status === 401) askForKey();
  if (error.code === "context_length_exceeded") exceeded(turn, error, edit);
  else if (error.name === "AbortError") turn.stopped(turn.answer ? [] : [again, edit]);
  else if (turn.answer) turn.fail(`${error.message} What had arrived is kept, as the answer.`, [again]);
  else turn.fail(error.message, [again, edit]);
}

/** The conversation does not fit the context: goes on without its oldest turns, if the user agrees. */
function exceeded(turn, error, edit) {
  const context = cards.get($("model").value)?.max_model_len, wanted = $("max-tokens").valueAsNumber;
  if (wanted >= context) {
    const again = ["Try again", () => attempt(turn)];
    turn.fail(`Max tokens is ${wanted}, but the model's context holds ${context} in all: lower it.`, [again, edit]);
  } else if (!chat.turns.length) {
    turn.fail(`This message alone exceeds the model's context. ${error.message}`, [edit]);
  } else if (chat.drops) {
    dropOldest();
    attempt(turn);
  } else {
    const goOn = ["Go on without the oldest turns", () => { chat.drops = true; exceeded(turn, error, edit); }];
    const renew = ["New chat with this message", () => { begin(); say(turn.text); }];
    turn.fail("The conversation exceeds the model's context.", [goOn, renew, edit]);
  }
}

function dropOldest() {
  const oldest = chat.turns.shift();
  oldest.drop();
  oldest.elements.at(-1).after(boundary);
}

/** Moves a turn's message back into the input, before what is there by now. */
function takeBack(turn) {
  chat.turns = chat.turns.filter((other) => other !== turn);
  turn.remove();
  $("text").value = [turn.text, $("text").value].filter(Boolean).join("\n");
  grow();
  $("text").focus();
}

function begin() {
  running?.abort();
  chat = newChat();
  $("log").replaceChildren(empty);
  $("text").focus();
}

function showRunning(isRunning) {
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  if (!isRunning && $("key") !== document.activeElement) $("text").focus();
}

function grow() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight + 2}px`;
}

function submit(event) {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || running || ![$("temperature"), $("max-tokens")].every((input) => input.reportValidity())) return;
  $("text").value = "";
  grow();
  say(text);
}

/** Copies the code of the block that a button belongs to; without access to the clipboard (plain HTTP), selects it. */
async function copy({ target }) {
  if (!target.matches("button.copy")) return;
  const code = target.closest(".code").querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    target.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    target.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  }
  setTimeout(() => { target.textContent = "Copy"; }, 2000);
}

$("form").addEventListener("submit", submit);
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", begin);
$("key").addEventListener("change", start);
$("log").addEventListener("click", copy);
$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
start();
$("text").focus();
