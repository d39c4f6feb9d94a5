// The chat page: conversations with the served models. Joins what the other files do.
//
// What must hold: no text of the user's is lost. Messages and answers are kept as they come; what fails stays on the
// page with a way on; what is deleted comes back by one click.

import { Announcer } from "./announcer.js";
import { Answering } from "./answering.js";
import { Conversation, SETTINGS } from "./conversation.js";
import { $, button, copy, download, problem } from "./elements.js";
import { imported, json, markdown } from "./exchange.js";
import { listen } from "./keys.js";
import { drawList } from "./list.js";
import { Log } from "./log.js";
import { apiKey, Settings } from "./settings.js";
import { openStore, StoreError } from "./store.js";
import { isSend, written } from "./turn.js";

const DRAFT = "lifecycle-draft";
const store = await openStore();
const settings = new Settings({ changed: set, keyed: loadModels });
const context = (model) => settings.context(model);
const answering = new Answering({ key: apiKey, context, firstModel, save, changed: progressed });
const announcer = new Announcer($("said"));
let chat = Conversation.begin();
let heads = [];

// What the buttons of the turns do; each takes the message that it stands at.
const log = new Log($("log"), $("scroll"), $("latest"), {
  choose: (node) => { chat.choose(node); keep(); },
  pick(node) { chat.choose(node); chat.parent(node).columns = null; keep(chat.parent(node)); },
  sideBySide(node) {
    const versions = chat.versions(node), at = Math.max(versions.indexOf(node), 1);
    chat.parent(node).columns = [versions[at - 1].id, versions[at].id];
    keep(chat.parent(node));
  },
  edit: (node, text) => (isBusy() ? tell() : say(text, chat.parent(node))),
  editAbove: (node) => log.view(chat.parent(node)).edit(),
  redraw: draw,
  retry,
  again(node) {
    if (node.text) return retry(node);
    if (chat.answers(chat.parent(node)).length < 2) node.model = settings.asked()[0];  // it may have been changed since
    return run([node]);
  },
  goOn: (node) => run([node], true),
  dropOldest(node) { Object.assign(chat.head, { drops: true }); run([node]); },
  renew(node) { const { text } = chat.parent(node); begin(); say(text, null); },
  room: (node) => ({
    wanted: chat.settings.max_tokens, context: context(node.model),
    isAlone: chat.sent(chat.parent(node)).length === 0,
  }),
  enterKey: () => settings.open("key"),
  settings: () => settings.open("max_tokens"),
}, answering);

const isBusy = () => answering.busy(chat.head.id) !== null;

/** Asks below a message, null for the first one. */
function say(text, parent) {
  const user = chat.add(parent, { role: "user", text });
  const nodes = settings.asked().map((model) => answerTo(user, model));
  if (nodes.length > 1) Object.assign(user, { columns: nodes.map(({ id }) => id) });
  chat.choose(nodes[0]);
  save(chat, [user, ...nodes]);
  log.toEnd();
  run(nodes);
  return true;
}

function answerTo(user, model) {
  return chat.add(user, { role: "assistant", model, reasoning: "", tokens: [], end: null, failure: null });
}

/** Another answer beside one, in its column if it stands in one. */
function retry(node) {
  if (isBusy()) return tell();
  const user = chat.parent(node), isChosen = chat.shown(user) === node, at = (user.columns ?? []).indexOf(node.id);
  const other = answerTo(user, at < 0 ? settings.asked()[0] : node.model);
  if (at >= 0) user.columns = user.columns.with(at, other.id);
  if (!isChosen) chat.choose(chat.nodes.get(user.columns[1 - at]));
  save(chat, [user, other]);
  run([other]);
}

/** Receives answers, all at once; `goesOn`: the rest of what is there. */
async function run(nodes, goesOn = false) {
  if (isBusy()) return tell();
  const own = chat;
  announcer.begin(nodes, nodes.length > 1 ? "Two answers are being written." : "An answer is being written.");
  const running = nodes.map((node) => answering.run(own, node, goesOn));
  draw();
  await Promise.all(running);
  if (own === chat) requestAnimationFrame(() => announcer.say(nodes.map(ended).join(" ")));  // after the last block
  draw();  // all of it: older turns may have left the context
}

const ended = ({ model, end }) => `${model}: ${end === "stop" || end === "length" ? "the answer is complete" : end}.`;

/** Shows what has arrived of an answer. */
function progressed(conversation, node) {
  if (conversation !== chat) return;
  log.update(node);
  const isAlone = chat.answers(chat.parent(node)).length === 1, isOver = !answering.isRunning(node);
  if (!isAlone && !isOver) return;
  requestAnimationFrame(() => announcer.follow(node, log.view(node)?.body.children ?? [], isOver));
}

/** Keeps messages of a conversation, and says if the browser cannot. */
async function save(conversation, nodes) {
  if (conversation.isDeleted) return;
  conversation.head.changed = Date.now();
  try {
    await store.save(conversation.head, nodes);
    await list();
  } catch (error) {
    notify(error.message, [["Export", () => exportAs("json")]]);
  }
}

function keep(...nodes) {
  draw();
  if (chat.nodes.size) save(chat, nodes);
}

function set(changes) {
  Object.assign(chat.settings, changes);
  keep();
}

function draw() {
  log.draw(chat);
  drawAround();
}

/** Everything but the turns. */
function drawAround() {
  settings.draw(chat.settings);
  $("empty").hidden = chat.nodes.size > 0;
  if (document.activeElement !== $("title")) $("title").value = chat.head.title;
  $("title").disabled = $("more").disabled = !chat.nodes.size;
  document.title = chat.head.title || "Chat";
  $("send").hidden = isBusy();
  $("stop").hidden = !isBusy();
  drawHeads();
}

function drawHeads() {
  drawList(heads, chat.head.id, (id) => answering.busy(id) !== null);
}

async function list() {
  heads = await store.heads();
  drawHeads();
}

/** One question at a time: says so, and returns false. */
function tell() {
  toast("An answer is still on its way: stop it first.");
  return false;
}

function toast(...parts) {
  $("toast").replaceChildren(...parts, button("×", () => $("toast").replaceChildren(), { title: "Close" }));
}

function notify(text, actions) {
  $("notice").replaceChildren(problem(text, actions));
}

async function loadModels() {
  try {
    await settings.load();
    $("notice").replaceChildren();
  } catch (error) {
    const key = error.status === 401 ? [["Enter the key", () => settings.open("key")]] : [];
    notify(error.message, [...key, ["Try again", loadModels]]);
  }
  chat.settings.model ||= [...settings.cards.keys()][0] ?? "";
  settings.draw(chat.settings);
}

async function firstModel() {
  await loadModels();
  return settings.asked()[0];
}

/** Another conversation, with the models and the sampling of this one. */
function begin() {
  chat = Conversation.begin({ ...chat.settings, system: SETTINGS.system });
  history.replaceState(null, "", "#");
  log.toEnd();
  draw();
}

/** Shows the conversation that the address names. */
async function open() {
  const id = location.hash.slice(1);
  if (id === chat.head.id) return;
  const found = answering.busy(id) ?? await load(id);
  if (id !== location.hash.slice(1)) return;  // the user has gone on to another one meanwhile
  if (found) chat = found;
  else if (chat.nodes.size) begin();
  log.toEnd();
  draw();
  focusText();
}

async function load(id) {
  const stored = await store.load(id);
  return stored && new Conversation(stored.head, stored.nodes);
}

/** On a screen that is touched, the focus would bring up the keyboard. */
function focusText() {
  if (!matchMedia("(pointer: coarse)").matches) $("text").focus();
}

function submit(event) {
  event.preventDefault();
  const text = written($("text"));
  if (!text) return;
  if (isBusy()) return tell();
  write("");
  say(text, last("assistant") ?? null);
  history.replaceState(null, "", `#${chat.head.id}`);
}

function write(text) {
  $("text").value = text;
  typed();
}

/** Gives the message the room that it needs, and keeps it for when the page is loaded again. */
function typed() {
  sessionStorage.setItem(DRAFT, $("text").value);
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight + 2}px`;
}

function exportAs(kind) {
  const name = (chat.head.title || "chat").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60);
  if (kind === "json") download(`${name}.json`, "application/json", json(chat));
  else download(`${name}.md`, "text/markdown", markdown(chat));
  $("menu").hidePopover();
}

/** Brings in an exported conversation as a new one. */
async function importFile({ target }) {
  const [file] = target.files, brought = imported(await file.text());
  target.value = "";  // the same file may be chosen again
  if (!brought) return notify(`${file.name} is not a conversation that this page has exported as JSON.`, []);
  await save(brought, [...brought.nodes.values()]);
  location.hash = brought.head.id;
}

/** Deletes the conversation on the page, until the user wants it back. */
async function remove() {
  const gone = chat;
  $("menu").hidePopover();
  answering.stop(gone);
  gone.isDeleted = true;
  await store.remove(gone.head.id);
  begin();
  offer(`Deleted “${gone.head.title}”.`, "Undo", gone);
  focusText();  // the button that had the focus is off now
  await list();
}

/** Says that a conversation is gone, and brings it back at a click. */
function offer(text, label, gone) {
  const back = button(label, async () => {
    gone.isDeleted = false;
    await save(gone, [...gone.nodes.values()]);
    $("toast").replaceChildren();
    location.hash = gone.head.id;
    await open();
  });
  toast(text, back);
}

/** Another tab has changed or deleted a conversation. */
async function follow({ id, isDeleted }) {
  const isShown = id === chat.head.id, held = isShown ? chat : answering.busy(id);
  if (held && isDeleted) held.isDeleted = true;
  if (isShown && isDeleted) offer("Another tab has deleted this conversation.", "Keep it", chat);
  const stored = isShown && !isDeleted && await load(id);
  if (stored && id === chat.head.id && !isBusy()) {  // an answer that has begun meanwhile belongs to the old messages
    chat.merge(stored);
    draw();
  }
  await list();
}

function step(by) {
  const at = heads.findIndex(({ id }) => id === chat.head.id) + by;
  if (heads[at]) location.hash = heads[at].id;
}

/** The last question or answer that is shown. */
const last = (role) => chat.path().findLast((node) => node.role === role);

$("form").addEventListener("submit", submit);
$("stop").addEventListener("click", () => answering.stop(chat));
$("new").addEventListener("click", (event) => { event.preventDefault(); begin(); focusText(); });
$("title").addEventListener("change", ({ target }) => {
  chat.head.title = target.value.trim() || chat.head.title;
  keep();
});
$("as-markdown").addEventListener("click", () => exportAs("markdown"));
$("as-json").addEventListener("click", () => exportAs("json"));
$("delete").addEventListener("click", remove);
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", importFile);
$("log").addEventListener("click", ({ target }) => {
  if (!target.matches("button.copy")) return;
  const code = target.closest(".code").querySelector("code");
  copy(code.textContent, code, target);
});
$("text").addEventListener("input", typed);
$("text").addEventListener("keydown", (event) => {
  if (!isSend(event)) return;
  event.preventDefault();
  $("form").requestSubmit();
});
addEventListener("hashchange", open);
addEventListener("unhandledrejection", ({ reason }) => {
  if (reason instanceof StoreError) notify(reason.message, []);
});
listen({
  stop: () => answering.stop(chat), newChat: () => { begin(); focusText(); }, compare: () => settings.compare(),
  settings: () => settings.open(), step,
  editLast: () => last("user") && log.view(last("user")).edit(),
  retryLast: () => last("assistant") && retry(last("assistant")),
});
store.follow(follow);
write(sessionStorage.getItem(DRAFT) ?? "");
if (!store.isKept) $("kept").textContent = "This browser keeps nothing here: conversations end with the page.";
await Promise.all([loadModels(), list(), open()]);
focusText();
document.body.dataset.ready = "";
