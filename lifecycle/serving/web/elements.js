// Elements of the page by name. What must hold: text only ever becomes text.

export const $ = (id) => document.getElementById(id);

/** An element with children, or a text. */
export function make(name, ...children) {
  const element = document.createElement(name);
  element.append(...children);
  return element;
}

/** The same with classes. */
export function styled(name, classes, ...children) {
  const element = make(name, ...children);
  element.className = classes;
  return element;
}

/** A button; `act` gets the click. `key` finds it again after its surroundings were drawn anew. */
export function button(label, act, { classes = "", title = "", key = label } = {}) {
  const element = styled("button", classes, label);
  element.type = "button";
  element.dataset.key = key;
  if (title) {
    element.title = title;
    element.setAttribute("aria-label", title);
  }
  element.addEventListener("click", act);
  return element;
}

/** A message about a failure, with buttons: [label, what it does]. */
export function problem(text, actions) {
  const message = styled("div", "error", text);
  message.setAttribute("role", "alert");
  const buttons = actions.map(([label, act]) => button(label, act));
  return styled("div", "problem", message, styled("div", "actions", ...buttons));
}

/** Copies a text; without access to the clipboard (plain HTTP), the element's, which it selects. The button `told`
 * says which. */
export async function copy(text, element, told) {
  const label = told.textContent;
  try {
    await navigator.clipboard.writeText(text);
    told.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(element);
    told.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  }
  setTimeout(() => { told.textContent = label; }, 2000);
}

/** Offers a text as a file. */
export function download(name, type, text) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);  // Safari still reads it after the click
}

const shownAs = new WeakMap();

/** Gives an element the children that `made` returns, unless it has those of the same state, a list: a button that is
 * replaced while the mouse is down on it gets no click. */
export function update(element, state, made) {
  const before = shownAs.get(element);
  if (before?.length === state.length && before.every((value, at) => value === state[at])) return;
  shownAs.set(element, state);
  element.replaceChildren(...made());
}
