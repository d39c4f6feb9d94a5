// One turn on the page: what the user said, the answer as it arrives, and how it ended.

import { make, show } from "./markdown.js";

const NEAR = 120;  // pixels from the end within which the page follows the answer

export class Turn {
  /** Appends a turn to the log; `scroll` is what scrolls. */
  constructor(log, scroll, text) {
    this.text = text;
    this.answer = "";
    this.scroll = scroll;
    this.body = styled("div", "body");
    this.end = make("div");
    const asked = styled("span", "text", text);
    this.elements = [
      styled("div", "turn user", styled("span", "hidden", "You: "), asked),
      styled("div", "turn assistant", styled("span", "hidden", "Model: "), this.body, this.end),
    ];
    log.append(...this.elements);
    scroll.scrollTop = scroll.scrollHeight;
  }

  /** Forgets the answer and how it ended. */
  clear() {
    this.answer = "";
    this.draw();
    this.end.replaceChildren();
  }

  /** Adds to the answer; the page shows it with its next frame. */
  add(text) {
    this.answer += text;
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  /** Shows the whole answer. */
  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    this.following(() => show(this.body, this.answer));
  }

  note(text) {
    this.following(() => this.end.append(styled("div", "note", text)));
  }

  /** Says what went wrong, with buttons: [label, what it does]. */
  fail(text, actions) {
    this.following(() => this.end.append(problem(text, actions)));
  }

  stopped(actions) {
    this.note(this.answer ? "stopped" : "stopped before the answer began");
    this.end.append(buttons(actions));
  }

  /** The conversation has gone on: takes the buttons away, and says so if it went on without this turn. */
  settle() {
    for (const actions of this.end.querySelectorAll(".actions")) actions.remove();
    if (this.answer) return;
    this.drop();
    this.note("not part of the conversation");
  }

  remove() {
    for (const element of this.elements) element.remove();
  }

  /** Marks the turn as one that the model no longer sees. */
  drop() {
    for (const element of this.elements) element.classList.add("dropped");
  }

  /** Stays at the end of the page if the reader is there. */
  following(change) {
    const { scroll } = this;
    const isNear = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR;
    change();
    if (isNear) scroll.scrollTop = scroll.scrollHeight;
  }
}

/** A message about a failure, with buttons: [label, what it does]. */
export function problem(text, actions) {
  const message = styled("div", "error", text);
  message.setAttribute("role", "alert");
  return styled("div", "problem", message, buttons(actions));
}

function buttons(actions) {
  return styled("div", "actions", ...actions.map(([label, act]) => {
    const button = make("button", label);
    button.type = "button";
    button.addEventListener("click", act);
    return button;
  }));
}

function styled(name, classes, ...children) {
  const element = make(name, ...children);
  element.className = classes;
  return element;
}
