// The list of conversations beside the page; on a phone it covers the page until one is chosen.

import { $, make, styled, update } from "./elements.js";

const side = $("side"), page = $("page"), opener = $("open-side");
const narrow = matchMedia("(max-width: 760px)");

/** Shows the heads of all conversations; `busy(id)` says which of them receive an answer. */
export function drawList(heads, current, busy) {
  const state = heads.flatMap(({ id, title }) => [id, title, id === current, busy(id)]);
  update($("list"), state, () => heads.map((head) => {
    const link = styled("a", busy(head.id) ? "busy" : "", head.title);
    link.href = `#${head.id}`;
    link.title = head.title;
    if (head.id === current) link.setAttribute("aria-current", "page");
    if (busy(head.id)) link.append(styled("span", "hidden", ", is being answered"));
    return make("li", link);
  }));
}

/** Opens or closes the list on a narrow page. */
export function openSide(isOpen) {
  side.classList.toggle("open", isOpen);
  opener.setAttribute("aria-expanded", String(isOpen));
  page.inert = isOpen && narrow.matches;
  side.inert = !isOpen && narrow.matches;
  if (isOpen) (side.querySelector("[aria-current]") ?? $("new")).focus();
}

opener.addEventListener("click", () => openSide(!side.classList.contains("open")));
narrow.addEventListener("change", () => openSide(false));
side.addEventListener("click", ({ target }) => { if (target.closest("a")) openSide(false); });
side.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !side.classList.contains("open")) return;
  event.stopPropagation();
  openSide(false);
  opener.focus();
});
document.addEventListener("pointerdown", ({ target }) => {
  if (side.classList.contains("open") && !side.contains(target)) openSide(false);
});
openSide(false);
