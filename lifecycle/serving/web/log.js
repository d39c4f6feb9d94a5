// The conversation on the page: its shown branch, from top to bottom, and where the reader is in it.
//
// What must hold: the page moves by itself only while the reader is at its end. Views are kept from one drawing to the
// next, with what the reader has opened, selected or focused in them.

import { styled } from "./elements.js";
import { Answer, Question } from "./turn.js";

const AT_END = 40;  // pixels from the end within which a reader who scrolls down has reached it
const BOUNDARY = "The model no longer sees what is above: with it, the conversation exceeds the context.";

export class Log {
  follows = true;
  place = { scrollTop: 0, scrollHeight: 0 };
  views = new Map();  // by message

  /** `element` has the turns, `scroll` is what scrolls, `latest` the button back to its end. */
  constructor(element, scroll, latest, acts, answering) {
    Object.assign(this, { element, scroll, latest, acts, answering });
    scroll.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.followEnd()).observe(scroll);  // a phone's keyboard comes or goes
    latest.addEventListener("click", () => this.toEnd());
  }

  /** Shows a conversation, or what has changed of it. */
  draw(conversation) {
    const focused = this.focused();
    if (conversation !== this.conversation) this.views.clear();
    this.conversation = conversation;
    const above = conversation.path().filter(({ role }) => role === "user");
    const first = above.findIndex(({ id }) => id === conversation.head.from);
    const turns = above.flatMap((user, i) => {
      const turn = this.turn(user, i < first, user !== above.at(-1));
      return i > 0 && i === first ? [styled("p", "note boundary", BOUNDARY), ...turn] : turn;
    });
    keep(this.element, turns);
    this.refocus(focused);
    this.followEnd();
  }

  /** Shows an answer as it is now; with the next frame, since several parts may arrive before it. */
  update(node) {
    this.waiting ??= new Set();
    this.waiting.add(node);
    this.frame ??= requestAnimationFrame(() => this.flush());
  }

  flush() {
    const nodes = this.waiting ?? [];
    this.waiting = this.frame = null;
    for (const node of nodes) if (this.views.has(node.id)) this.drawAnswer(node);
    this.followEnd();
  }

  view(node) {
    return this.views.get(node.id);
  }

  turn(user, isDropped, isOver) {
    const { conversation } = this;
    const answers = conversation.answers(user);
    const isIdle = answers.every((node) => !this.answering.isRunning(node) && !node.text);
    const note = isOver && isIdle ? "not part of the conversation" : "";
    const question = this.made(user, Question);
    question.draw(user, { versions: conversation.versions(user), isDropped, note });
    for (const node of answers) this.made(node, Answer);
    for (const node of answers) this.drawAnswer(node, isDropped);
    const elements = answers.map((node) => this.view(node).element);
    if (answers.length < 2) return [question.element, ...elements];
    return [question.element, this.columns(user, elements)];
  }

  columns(user, elements) {
    const key = `${user.id} columns`;
    if (!this.views.has(key)) this.views.set(key, sideBySide());
    const columns = this.views.get(key);
    keep(columns, elements);
    return columns;
  }

  made(node, View) {
    if (!this.views.has(node.id)) this.views.set(node.id, new View(node, this.acts));
    return this.views.get(node.id);
  }

  drawAnswer(node, isDropped = this.view(node).isDropped) {
    const { conversation } = this, user = conversation.parent(node), view = this.view(node);
    view.isDropped = isDropped;
    view.draw(node, {
      versions: conversation.versions(node), isDropped, isRunning: this.answering.isRunning(node),
      side: conversation.answers(user).length > 1, isChosen: conversation.shown(user) === node,
    });
  }

  /** The turn and the button that has the focus. */
  focused() {
    const active = document.activeElement;
    const turn = this.element.contains(active) ? active.closest("[data-turn]") : null;
    return turn && { turn: turn.dataset.turn, key: active.dataset.key, active };
  }

  /** Focuses the same button of what stands there now. */
  refocus(before) {
    if (!before || before.active.isConnected) return;
    const buttons = [...this.element.querySelectorAll(`[data-turn="${before.turn}"] button`)];
    buttons.find(({ dataset }) => dataset.key === before.key)?.focus();
  }

  isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroll;
    return scrollHeight - scrollTop - clientHeight < AT_END;
  }

  /** Lets go as soon as the reader moves up, by however little: each frame of an answer would pull them back. */
  scrolled() {
    const { scrollTop, scrollHeight } = this.scroll, before = this.place;
    this.place = { scrollTop, scrollHeight };
    if (scrollTop < before.scrollTop && scrollHeight >= before.scrollHeight) this.follow(false);
    else if (scrollTop > before.scrollTop && this.isAtEnd()) this.follow(true);
  }

  follow(follows) {
    this.follows = follows;
    this.latest.hidden = follows || this.isAtEnd();
  }

  toEnd() {
    this.follow(true);
    this.followEnd();
  }

  followEnd() {
    if (this.follows) this.scroll.scrollTop = this.scroll.scrollHeight;
    else this.latest.hidden = this.isAtEnd();
  }
}

/** Gives an element these children; one that stays is not taken off in between, which would lose its focus. */
function keep(element, children) {
  for (const child of [...element.children]) if (!children.includes(child)) child.remove();
  children.forEach((child, i) => {
    if (element.children[i] !== child) element.insertBefore(child, element.children[i] ?? null);
  });
}

function sideBySide() {
  const columns = styled("div", "columns");
  columns.setAttribute("role", "group");
  columns.setAttribute("aria-label", "Two answers, side by side");
  columns.tabIndex = 0;  // so that the keyboard can scroll it
  return columns;
}
