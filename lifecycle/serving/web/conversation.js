// A conversation: a tree of messages, of which one branch is shown and sent.
//
// What must hold: nothing that was said is lost. Another answer or an edited message is a new branch beside the old
// one, so two tabs that write the same conversation only ever add to it. A message is stored under its own id.

export const SETTINGS = {
  model: "", other: "", compares: false,  // `other`: the model beside, where a question goes to two
  system: "", temperature: null, top_p: null, max_tokens: null, seed: null, logprobs: false,
};
const SAMPLING = ["temperature", "top_p", "max_tokens", "seed"];
const ROOT = "";
const TITLE_LENGTH = 60;

export class Conversation {
  /** `head` is what is stored of the conversation itself, `nodes` its messages. */
  constructor(head, nodes = []) {
    this.head = head;
    this.nodes = new Map(nodes.map((node) => [node.id, node]));
  }

  /** An empty one with these settings. `chosen` has a message's shown child, `from` is the oldest one that is sent. */
  static begin(settings = SETTINGS) {
    const now = Date.now();
    return new Conversation({
      id: identifier(), title: "", created: now, changed: now, settings: { ...settings }, chosen: {}, from: null,
      drops: false,  // the user agreed to lose the oldest turns
    });
  }

  get settings() {
    return this.head.settings;
  }

  /** A new message below another one (null: the first), which becomes the shown one. */
  add(parent, fields) {
    const newest = Math.max(0, ...[...this.nodes.values()].map(({ created }) => created));
    const node = {
      id: identifier(), conversation: this.head.id, parent: parent?.id ?? ROOT, text: "", ...fields,
      created: Math.max(Date.now(), newest + 1),  // versions are in this order, also two of the same millisecond
    };
    this.nodes.set(node.id, node);
    this.choose(node);
    this.head.title ||= titled(node.text);
    return node;
  }

  parent(node) {
    return this.nodes.get(node.parent) ?? null;
  }

  /** The messages below one, oldest first. */
  children(node) {
    const id = node?.id ?? ROOT;
    return [...this.nodes.values()].filter(({ parent }) => parent === id).sort((a, b) => a.created - b.created);
  }

  /** A message and those in its place. */
  versions(node) {
    return this.children(this.parent(node));
  }

  choose(node) {
    this.head.chosen[node.parent] = node.id;
  }

  /** The shown child; without a choice the newest. */
  shown(node) {
    const children = this.children(node);
    return children.find(({ id }) => id === this.head.chosen[node?.id ?? ROOT]) ?? children.at(-1) ?? null;
  }

  /** The shown branch, from the first message on. */
  path() {
    const path = [];
    for (let node = this.shown(null); node; node = this.shown(node)) path.push(node);
    return path;
  }

  /** The answers that are shown to a message: one, or two side by side. */
  answers(user) {
    const columns = (user.columns ?? []).map((id) => this.nodes.get(id)).filter(Boolean);
    const one = this.shown(user);
    return columns.length === 2 ? columns : one ? [one] : [];
  }

  /** From the first message to a question: the turns above it, as [question, answer]. */
  turns(user) {
    const turns = [];
    for (let answer = this.parent(user); answer; answer = this.parent(this.parent(answer))) {
      turns.unshift([this.parent(answer), answer]);
    }
    return turns;
  }

  /** Those that are sent with a question: from `from` on, without those that have no answer. */
  sent(user) {
    if (this.head.from === user.id) return [];
    const turns = this.turns(user);
    const first = turns.findIndex(([question]) => question.id === this.head.from);
    return turns.slice(Math.max(first, 0)).filter(([, answer]) => answer.text);
  }

  /** What is sent for the answer to a question. */
  messages(user) {
    const said = [...this.sent(user).flat(), user].map(({ role, text }) => ({ role, content: text }));
    return this.settings.system ? [{ role: "system", content: this.settings.system }, ...said] : said;
  }

  /** Leaves out the oldest turn that is still sent with a question; false if there is none. */
  dropOldest(user) {
    const questions = [...this.sent(user).map(([question]) => question), user];
    if (questions.length < 2) return false;
    this.head.from = questions[1].id;
    return true;
  }

  /** The request's settings that are not left to the model. */
  sampling() {
    const given = SAMPLING.filter((name) => this.settings[name] !== null);
    return Object.fromEntries(given.map((name) => [name, this.settings[name]]));
  }

  /** Takes what another tab has stored of this conversation. */
  merge(other) {
    this.head = other.head;
    for (const [id, node] of other.nodes) this.nodes.set(id, node);
  }
}

function titled(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1)}…` : line;
}

/** A random id; `crypto.randomUUID` is missing on pages by plain HTTP. */
function identifier() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
