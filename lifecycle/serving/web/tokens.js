// The tokens of an answer with their probabilities: shaded by how likely each was, and for the one that is pointed at,
// focused or tapped, the likeliest others. A list of which one is always selected; arrow keys move on in it.

import { make, styled } from "./elements.js";

const BOUNDS = [0.9, 0.6, 0.3, 0.1];  // a lower class of shading for each that the probability does not reach

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share < 0.1 ? "< 0.1 %" : `${share.toFixed(share < 99.95 ? 1 : 0)} %`;
};
const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "→");

/** An element with the tokens, and below it what is known of the selected one. */
export function tokenView(tokens) {
  const list = styled("div", "tokens", ...tokens.map(tokenElement));
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Tokens, shaded by probability");
  const detail = styled("div", "alternatives");
  const select = (index) => {
    list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    for (const element of list.querySelectorAll("[tabindex='0']")) element.tabIndex = -1;
    const chosen = list.children[index];
    chosen.tabIndex = 0;
    chosen.setAttribute("aria-selected", "true");
    detail.replaceChildren(alternatives(tokens[index]));
  };
  const indexOf = (element) => [...list.children].indexOf(element.closest("[role=option]"));
  for (const event of ["pointerover", "click", "focusin"]) {
    list.addEventListener(event, ({ target }) => { if (indexOf(target) >= 0) select(indexOf(target)); });
  }
  list.addEventListener("keydown", (event) => {
    const to = moved(event.key, indexOf(event.target), tokens.length);
    if (to === null) return;
    event.preventDefault();
    list.children[to].focus();
  });
  select(0);
  return make("div", list, detail);
}

function moved(key, at, count) {
  const places = {
    ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: count - 1,
  };
  const to = places[key];
  return to === undefined ? null : Math.min(Math.max(to, 0), count - 1);
}

function tokenElement({ text, logprob }) {
  const level = BOUNDS.filter((bound) => Math.exp(logprob) < bound).length;
  const element = styled("span", `token p${level}`, text.replaceAll("\n", "↵\n"));
  element.setAttribute("role", "option");
  element.setAttribute("aria-selected", "false");
  element.setAttribute("aria-label", `${visible(text)}, ${percent(logprob)}`);
  element.tabIndex = -1;
  return element;
}

/** A table: the sampled token, and the likeliest ones. */
function alternatives({ text, logprob, others }) {
  const isAmong = others.some(([other]) => other === text);
  const rows = isAmong ? others : [[text, logprob], ...others];
  const head = make("thead", make("tr", make("th", "Token"), make("th", "Probability"), make("th", "Log")));
  const body = rows.map(([other, value]) => {
    const row = make("tr", make("td", make("code", visible(other))), make("td", percent(value)),
      make("td", value.toFixed(3)));
    if (other === text) row.className = "sampled";
    return row;
  });
  const caption = make("caption", `Likeliest tokens in place of “${visible(text)}”`);
  return make("table", caption, head, make("tbody", ...body));
}
