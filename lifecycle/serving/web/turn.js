// A question and an answer on the page. A view shows its message as it is now whenever it is drawn; what its buttons do
// is the chat's (`acts`).

import { button, copy, make, problem, styled, update } from "./elements.js";
import { show } from "./markdown.js";
import { tokenView } from "./tokens.js";

/** What was asked: its text, its versions, and a form to change it. */
export class Question {
  constructor(node, acts) {
    this.acts = acts;
    this.text = styled("div", "text");
    this.end = styled("div", "actions");
    this.element = styled("section", "turn user", styled("h2", "hidden", "You"), this.text, this.end);
    this.element.dataset.turn = node.id;
  }

  /** `versions` are the messages in its place, `isDropped` says that the model no longer sees it. */
  draw(node, { versions, isDropped, note }) {
    this.node = node;
    this.element.classList.toggle("dropped", isDropped || Boolean(note));
    if (this.form) return;
    this.text.textContent = node.text;
    update(this.end, [node, node.text, note, ids(versions)], () => [
      ...(note ? [styled("span", "note", note)] : []), ...steps(node, versions, this.acts.choose),
      button("Edit", () => this.edit()), button("Copy", ({ target }) => copy(node.text, this.text, target)),
    ]);
  }

  /** Opens the form; the old message stays as a version. */
  edit() {
    const input = make("textarea");
    input.value = this.node.text;
    input.rows = Math.min(this.node.text.split("\n").length + 1, 12);
    input.setAttribute("aria-label", "Edit the message");
    this.form = styled("form", "edit", input, styled("div", "actions",
      button("Cancel", () => this.close()), Object.assign(styled("button", "main", "Send"), { type: "submit" })));
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.send(written(input)); });
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); this.close(); }
      if (isSend(event)) { event.preventDefault(); this.send(written(input)); }
    });
    this.element.classList.add("editing");
    this.element.append(this.form);
    input.focus();
  }

  send(text) {
    if (text && this.acts.edit(this.node, text)) this.close();
  }

  close() {
    this.form.remove();
    this.form = null;
    this.element.classList.remove("editing");
    this.acts.redraw();
    this.element.querySelector("[data-key=Edit]")?.focus();
  }
}

/** Enter, but not one for a new line, nor the one that ends a composition of characters (229 in Safari). */
export const isSend = ({ key, keyCode, shiftKey, isComposing }) => (
  key === "Enter" && !shiftKey && !isComposing && keyCode !== 229
);

/** The text of a field, without blank lines before it and space after it; an indented line stays so. */
export const written = (input) => input.value.trimEnd().replace(/^(?:[^\S\n]*\n)+/, "");

/** An answer: its reasoning, its text or its tokens, and how it ended. */
export class Answer {
  constructor(node, acts) {
    this.acts = acts;
    this.title = styled("h2", "model");
    this.thought = styled("div", "body");
    this.reasoning = styled("details", "reasoning", make("summary", "Reasoning"), this.thought);
    this.body = styled("div", "body");
    this.tokens = styled("div", "probabilities");
    this.problem = make("div");
    this.note = styled("div", "note");
    this.actions = styled("div", "actions");
    const end = styled("div", "end", this.note, this.actions);
    this.element = styled("section", "turn assistant", this.title, this.reasoning, this.body, this.tokens, this.problem,
      end);
    this.element.dataset.turn = node.parent;
    this.showsTokens = false;
  }

  /** `versions` are the answers in its place, `side` says that it stands beside another, `isChosen` that the
   * conversation goes on with it. */
  draw(node, state) {
    this.node = node;
    this.title.textContent = node.model;
    this.element.classList.toggle("dropped", state.isDropped);
    this.element.classList.toggle("running", state.isRunning);
    this.element.classList.toggle("chosen", Boolean(state.side && state.isChosen));
    this.isRunning = state.isRunning;
    this.drawText();
    if (!state.isRunning) this.drawEnd(state);
    else this.clearEnd();
  }

  drawText() {
    const { node } = this;
    const hasTokens = this.showsTokens && !this.isRunning && node.tokens.length > 0;
    this.reasoning.hidden = !node.reasoning;
    if (node.reasoning) show(this.thought, node.reasoning);
    show(this.body, node.text);
    this.body.hidden = hasTokens;
    if (hasTokens !== this.tokens.hasChildNodes()) {
      this.tokens.replaceChildren(...(hasTokens ? [tokenView(node.tokens)] : []));
    }
  }

  drawEnd(state) {
    const { acts, node } = this;
    this.note.textContent = ending(node);
    const seen = node.failure ? [node.failure, node.text, ...Object.values(acts.room(node))] : [];
    update(this.problem, seen, () => (node.failure ? [failed(node, acts)] : []));
    const isPart = ["stopped", "length", "failed", null].includes(node.end);  // null: the page was closed before
    const canGoOn = isPart && node.text && !node.reasoning;  // a prompt has no place for what the model had thought
    const shown = [node, node.text, node.tokens.length, node.failure, canGoOn, ids(state.versions)];
    update(this.actions, [...shown, state.side, state.isChosen], () => [
      ...(state.side ? [this.chooser(state)] : steps(node, state.versions, acts.choose)),
      ...(canGoOn ? [button("Continue", () => acts.goOn(node))] : []),
      ...(node.failure ? [] : [button("Retry", () => acts.retry(node))]),  // "Try again" is beside the failure
      ...(node.text ? [button("Copy", ({ target }) => copy(node.text, this.body, target))] : []),
      ...(node.tokens.length ? [this.toggle()] : []),
      ...(!state.side && state.versions.length > 1 ? [button("Side by side", () => acts.sideBySide(node))] : []),
    ]);
  }

  clearEnd() {
    this.note.replaceChildren();
    update(this.problem, [], () => []);
    update(this.actions, [], () => []);
  }

  chooser({ isChosen }) {
    return button("Go on with this", () => this.acts.pick(this.node), { classes: isChosen ? "" : "other" });
  }

  toggle() {
    const pressed = button("Probabilities", () => {
      this.showsTokens = !this.showsTokens;
      pressed.setAttribute("aria-pressed", String(this.showsTokens));
      this.drawText();
    });
    pressed.setAttribute("aria-pressed", String(this.showsTokens));
    return pressed;
  }
}

const ids = (versions) => versions.map(({ id }) => id).join();

/** Buttons to the versions before and after, if there are several. */
function steps(node, versions, choose) {
  if (versions.length < 2) return [];
  const at = versions.findIndex(({ id }) => id === node.id);
  const step = (label, to, title) => {
    const made = button(label, () => versions[to] && choose(versions[to]), { title, key: title });
    made.setAttribute("aria-disabled", String(!versions[to]));  // not `disabled`, which would lose the focus
    return made;
  };
  const place = styled("span", "place", styled("span", "hidden", "Version "), `${at + 1}/${versions.length}`);
  const group = styled("span", "steps", step("‹", at - 1, "Version before"), place, step("›", at + 1, "Next version"));
  return [group];
}

/** The line under an answer. */
function ending({ count, seconds, first_s, end, limit, text, version }) {
  const parts = [];
  if (end === null) parts.push("not finished: the page was closed, or another tab still receives it");
  if (end === "stopped") parts.push(text ? "stopped" : "stopped before the answer began");
  if (end === "length") parts.push(limit ? "ended at Max tokens" : "ended: the context is full");
  if (count) parts.push(`${Number((count / seconds).toPrecision(2))} tokens/s`);
  if (count) parts.push(count === 1 ? "1 token" : `${count} tokens`);
  if (first_s !== null && first_s !== undefined) parts.push(`first after ${first_s.toFixed(first_s < 10 ? 1 : 0)} s`);
  if (version) parts.push(`version ${version.slice(0, 12)}`);
  return parts.join(" · ");
}

/** What went wrong, with the ways on. */
function failed(node, acts) {
  const { failure, text } = node;
  const kept = text ? `${failure.message} What had arrived is kept, as the answer.` : failure.message;
  const again = ["Try again", () => acts.again(node)], edit = ["Edit message", () => acts.editAbove(node)];
  if (failure.code === "context_length_exceeded") return exceeded(node, acts, again, edit);
  const key = failure.status === 401 ? [["Enter the key", acts.enterKey]] : [];
  const shown = problem(kept, [...key, again, ...(text ? [] : [edit])]);
  if (failure.until > Date.now()) countDown(shown.querySelector("[data-key='Try again']"), failure.until);
  return shown;
}

/** The conversation does not fit the context: it goes on without its oldest turns, if the user agrees. */
function exceeded(node, acts, again, edit) {
  const { wanted, context, isAlone } = acts.room(node);
  if (wanted >= context) {
    return problem(`Max tokens is ${wanted}, but the model's context holds ${context} in all: lower it.`,
      [["Settings", acts.settings], again, edit]);
  }
  if (isAlone) return problem(`This message alone exceeds the model's context. ${node.failure.message}`, [again, edit]);
  const goOn = ["Go on without the oldest turns", () => acts.dropOldest(node)];
  const renew = ["New chat with this message", () => acts.renew(node)];
  return problem("The conversation exceeds the model's context.", [goOn, renew, edit]);
}

/** Blocks a button for as long as the server has asked to wait. */
function countDown(waiting, until) {
  const left = Math.ceil((until - Date.now()) / 1000);
  waiting.disabled = left > 0;
  waiting.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
  if (left > 0) setTimeout(() => countDown(waiting, until), 200);
}
