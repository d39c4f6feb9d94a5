// Keyboard shortcuts, and the dialog that lists them. Letters go with Alt: alone they would be typed by speech input,
// or jump in a screen reader.

import { $, make } from "./elements.js";

const LISTED = [
  ["Enter", "Send the message"], ["Shift+Enter", "New line"], ["Esc", "Stop the answer"],
  ["↑ in an empty message", "Edit the last message"], ["Alt+N", "New chat"], ["Alt+R", "Retry the last answer"],
  ["Alt+C", "Compare two models"], ["Alt+S", "Settings"], ["Alt+↑, Alt+↓", "Conversation before, next one"],
  ["← → among tokens", "Token before, next one"], ["Alt+/, or ? outside a field", "This list"],
];
const dialog = $("keys");

/** Calls back by name: stop, editLast, newChat, retryLast, compare, settings, step(-1 or 1). */
export function listen(acts) {
  const alt = {
    KeyN: acts.newChat, KeyR: acts.retryLast, KeyC: acts.compare, KeyS: acts.settings, Slash: showKeys,
    ArrowUp: () => acts.step(-1), ArrowDown: () => acts.step(1),
  };
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open], :popover-open")) return;  // the key is theirs
    const act = found(event, acts, alt);
    if (!act) return;
    event.preventDefault();
    act();
  });
  $("open-keys").addEventListener("click", showKeys);
  $("shortcuts").replaceChildren(...LISTED.map(([keys, text]) => (
    make("div", make("dt", make("kbd", keys)), make("dd", text))
  )));
}

function found(event, acts, alt) {
  if (event.isComposing || event.ctrlKey || event.metaKey) return null;
  if (event.altKey) return alt[event.code];
  if (event.key === "Escape") return acts.stop;
  if (event.key === "?" && !event.target.matches("input, textarea, select")) return showKeys;
  return event.key === "ArrowUp" && event.target === $("text") && !$("text").value ? acts.editLast : null;
}

function showKeys() {
  $("menu").hidePopover();
  dialog.showModal();
}
