// Markdown as the page's elements, while it arrives: the blocks of CommonMark and GitHub's tables that models write.
//
// What must hold: text only ever becomes text. Elements are made by name and filled with `textContent`; a link goes to
// http, https or mailto. Left out: HTML, images (shown as links), indented code, references, footnotes. Line breaks are
// kept, and `__name__` stays as it is, since in answers about code it is a name.

import { make } from "./elements.js";
import { inline } from "./inline.js";

const DEPTH = 8;  // of lists and quotes in each other; deeper ones are text
// No expression here may take longer than linear time: a small model repeats itself to the end of its context.
const FENCE = /^ {0,3}(`{3,}|~{3,}) {0,3}([^\s`]*)(?:\s[^`]*)?$/;
const HEADING = /^ {0,3}(#{1,6})(?: (.*))?$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)(?:([-*+])|(\d{1,9})[.)])(?: +|$)/;
const BLANK = /^\s*$/;
const STARTS = [FENCE, HEADING, RULE, QUOTE, ITEM];  // end a paragraph

const shown = new WeakMap();  // element -> the sources of the blocks in it

/** Shows Markdown in an element. Blocks that have not changed since the last call stay, with the reader's selection,
 * and so does the frame of one that only grows. */
export function show(element, text) {
  const blocks = split(text.split("\n"), 0);
  const before = shown.get(element) ?? [];
  let same = 0;
  while (same < before.length && same < blocks.length && before[same] === blocks[same].source) same++;
  if (same === before.length - 1 && blocks[same]?.grow?.(element.lastChild)) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  element.append(...blocks.slice(same).map((block) => block.build()));
  shown.set(element, blocks.map((block) => block.source));
}

// The kinds of blocks, in order: each takes the lines, the first one's number and the depth, and returns the number of
// the line after the block and a function that builds it, or nothing if another kind begins there. Some also have a
// function that makes an element of their kind theirs; it returns false if the element is another.
const KINDS = [fence, heading, rule, quote, list, table];

function split(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (BLANK.test(lines[at])) { at++; continue; }
    const { end, ...block } = begun(lines, at, depth) ?? paragraph(lines, at);
    blocks.push({ source: lines.slice(at, end).join("\n"), ...block });
    at = end;
  }
  return blocks;
}

function begun(lines, at, depth) {
  for (const kind of KINDS) {
    const block = kind(lines, at, depth);
    if (block) return block;
  }
  return null;
}

const ends = (lines, at) => STARTS.some((start) => start.test(lines[at])) || table(lines, at) !== null;

const nested = (lines, depth) => split(lines, depth + 1).map((block) => block.build());

function fence(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (!open) return null;
  const [, mark, language] = open;
  const isEnd = (line) => line.trim().startsWith(mark) && /^(`+|~+)$/.test(line.trim());
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end])) end++;  // one that is still open goes to the end
  const code = lines.slice(at + 1, end).join("\n");
  const build = () => codeBlock(code, language);
  return { end: Math.min(end + 1, lines.length), build, grow: (block) => growCode(block, code, language) };
}

/** The block keeps its place in a long line, its selection and its button. */
function growCode(block, code, language) {
  const shown = block.querySelector?.(":scope > pre > code");
  if (!shown || block.querySelector("span").textContent !== language) return false;
  const text = shown.firstChild ?? shown.appendChild(document.createTextNode(""));
  if (!code.startsWith(text.data)) return false;
  text.appendData(code.slice(text.length));
  return true;
}

function codeBlock(code, language) {
  const copy = make("button", "Copy");
  copy.type = "button";
  copy.className = "copy";
  const pre = make("pre", make("code", code));
  pre.tabIndex = 0;  // so that the keyboard can scroll it
  label(pre, language ? `Code, ${language}` : "Code");
  const block = make("div", make("div", make("span", language), copy), pre);
  block.className = "code";
  return block;
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  const name = `h${Math.min(found[1].length + 2, 6)}`;  // h1 is the page, h2 who says it
  return { end: at + 1, build: () => make(name, inline((found[2] ?? "").trim().replace(/ #+$/, ""))) };
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? { end: at + 1, build: () => make("hr") } : null;
}

function quote(lines, at, depth) {
  if (depth >= DEPTH || !QUOTE.test(lines[at])) return null;
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return { end, build: () => make("blockquote", ...nested(inner, depth)) };
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (depth >= DEPTH || !first) return null;
  const items = [];
  let end = at;
  for (let mark = first; mark && !RULE.test(lines[end]) && Boolean(mark[2]) === Boolean(first[2]);) {
    const start = end++;
    while (end < lines.length && continues(lines, end, first[1].length)) end++;
    items.push(itemLines(lines.slice(start, end), mark[0].length));
    mark = end < lines.length ? ITEM.exec(lines[end]) : null;
  }
  return { end, build: () => listElement(items, first[3], depth) };
}

/** Whether a line belongs to the item above it: indented, blank before an indented one, or the paragraph's next. */
function continues(lines, at, indent) {
  const inside = (line) => /^ */.exec(line)[0].length >= indent + 2;
  if (BLANK.test(lines[at])) {
    const next = lines.slice(at, at + 3).find((line) => !BLANK.test(line));
    return next !== undefined && (inside(next) || (ITEM.test(next) && /^ */.exec(next)[0].length === indent));
  }
  return inside(lines[at]) || !(BLANK.test(lines[at - 1]) || ends(lines, at));
}

function itemLines(lines, width) {
  const indented = (line) => Math.min(/^ */.exec(line)[0].length, width);
  return [lines[0].slice(width), ...lines.slice(1).map((line) => line.slice(indented(line)))];
}

function listElement(items, start, depth) {
  const element = make(start ? "ol" : "ul", ...items.map((lines) => make("li", ...nested(lines, depth))));
  if (start && start !== "1") element.start = Number(start);
  return element;
}

function table(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length) return null;
  const head = cells(lines[at]), marks = cells(lines[at + 1]);
  if (marks.length !== head.length || !marks.every((mark) => /^:?-+:?$/.test(mark))) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  return { end, build: () => tableElement(head, marks, lines.slice(at + 2, end).map(cells)) };
}

const cells = (line) => line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/)
  .map((cell) => cell.trim().replaceAll("\\|", "|"));

function tableElement(head, marks, rows) {
  const row = (name, texts) => make("tr", ...marks.map((mark, i) => {
    const cell = make(name, inline(texts[i] ?? ""));
    if (mark.endsWith(":")) cell.className = mark.startsWith(":") ? "center" : "right";
    return cell;
  }));
  const body = make("tbody", ...rows.map((texts) => row("td", texts)));
  const scroll = make("div", make("table", make("thead", row("th", head)), body));
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  label(scroll, "Table");
  return scroll;
}

/** Names what the keyboard can reach. */
function label(element, name) {
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", name);
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !BLANK.test(lines[end]) && !ends(lines, end)) end++;
  return { end, build: () => make("p", inline(lines.slice(at, end).join("\n"))) };
}
