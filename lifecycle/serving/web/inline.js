// The Markdown inside a line: code, bold, italics, struck text, links.
//
// One pass over the text. Delimiters wait on a stack with the place of their node in the output; a closing one wraps
// what has come since. As in CommonMark, `*` next to a space is a star, and `_` inside a word is part of it. What never
// closes stays text, and the time grows with the text's length, whatever the model repeats.

const ESCAPED = /\\([!-/:-@[-`{-~])/y;
const TARGET = /\( {0,3}<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?: {1,3}"[^"\n]*")? {0,3}\)/y;
const ADDRESS = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const BARE = /https?:\/\/[^\s<>"`\])*(]+(?:\([^\s<>"`\])*(]*\)[^\s<>"`\])*(]*)*/y;
const PLAIN = /(?:(?!https?:\/\/)[^\\`*_~[\]!<])+/y;  // up to the next character that may mean something
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const STYLES = { "*": ["em", "strong"], _: ["em", null], "~": [null, "s"] };  // by the number of delimiters
const COUNTS = { "*": [1, 2, 3], _: [1], "~": [2] };  // of delimiters that open something

/** A fragment with the text's inline elements. */
export function inline(text) {
  return new Inline(text).parse();
}

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.nodes = [];   // finished nodes; those of delimiters are texts until they are closed
    this.open = [];    // delimiters that wait: { char, count, node } with the index of their node
    this.waiting = {};  // by character: how many delimiters wait
    this.lastCode = lastRuns(text);
  }

  parse() {
    while (this.at < this.text.length) this.next();
    const fragment = document.createDocumentFragment();
    fragment.append(...this.nodes);
    fragment.normalize();
    return fragment;
  }

  next() {
    const char = this.text[this.at];
    const done = (char === "\\" && this.escaped()) || (char === "`" && this.code())
      || (char in STYLES && this.delimiter(char)) || (char === "]" && this.link())
      || (char === "<" && this.address(ADDRESS, 1)) || (char === "h" && this.address(BARE, 0)) || this.plain();
    if (!done) this.add(this.opens(char) ?? char, char.length);
  }

  /** The text of a bracket that may begin a link. The `!` of an image goes with it. */
  opens(char) {
    const mark = char === "!" && this.text[this.at + 1] === "[" ? "![" : char;
    if (!mark.endsWith("[")) return null;
    this.wait("[", mark.length);
    this.at += mark.length - 1;
    return mark;
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  add(node, length) {
    this.nodes.push(node);
    this.at += length;
    return true;
  }

  plain() {
    const found = this.match(PLAIN);
    return found && this.add(found[0], found[0].length);
  }

  escaped() {
    const found = this.match(ESCAPED);
    return found && this.add(found[1], 2);
  }

  code() {
    const mark = this.match(/`+/y)[0];
    const begin = this.at + mark.length;
    if ((this.lastCode.get(mark.length) ?? -1) < begin) return this.add(mark, mark.length);
    const closing = new RegExp(`(?<!\`)${mark}(?!\`)`, "g");
    closing.lastIndex = begin;
    const end = closing.exec(this.text).index;
    const inner = this.text.slice(begin, end);
    const trimmed = /^ .*\S.* $/s.test(inner) ? inner.slice(1, -1) : inner;
    return this.add(wrap("code", [trimmed]), end + mark.length - this.at);
  }

  address(pattern, skip) {
    const before = this.text.slice(Math.max(this.at - 2, 0), this.at);
    if (this.waiting["["] || /\w$|\]\($/.test(before)) return false;  // no link inside a link or its target
    const found = this.match(pattern);
    if (!found) return false;
    const address = (found[1] ?? found[0]).replace(skip ? "" : /[.,;:!?'_~]{1,3}$/, "");
    const link = anchor(address, [address]);
    // one that is none is text as a whole: its inside is not tried again
    return link ? this.add(link, address.length + 2 * skip) : this.add(found[0], found[0].length);
  }

  link() {
    if (!this.waiting["["]) return false;
    const opener = this.open.findLastIndex((delimiter) => delimiter.char === "[");
    const start = this.open[opener].node;
    this.at++;
    const target = this.match(TARGET);
    const link = target && anchor(target[1], this.nodes.slice(start + 1));
    this.forget(link ? opener : this.open.length, opener);
    if (!link) return this.add("]", 0);
    this.open = this.open.filter((delimiter) => delimiter.char !== "[");
    this.waiting["["] = 0;
    this.nodes.length = start;
    return this.add(link, target[0].length);
  }

  delimiter(char) {
    const { at, text } = this;
    let end = at;
    while (text[end] === char) end++;
    const before = text[at - 1] ?? " ", after = text[end] ?? " ";
    const isInWord = char === "_" && /\w/.test(before) && /\w/.test(after);
    const canClose = !isInWord && !/\s/.test(before), canOpen = !isInWord && !/\s/.test(after);
    const left = canClose ? this.close(char, end - at) : end - at;
    if (canOpen && COUNTS[char].includes(left)) this.wait(char, left);
    return this.add(char.repeat(left), end - at);
  }

  /** Wraps what has come since each delimiter that these close; returns how many are left. */
  close(char, count) {
    let left = count;
    while (left && this.waiting[char]) {
      const opener = this.open.findLastIndex((delimiter) => delimiter.char === char);
      const { count: opened, node } = this.open[opener];
      const used = Math.min(opened, left, 2);
      const name = STYLES[char][used - 1];
      if (!name || node + 1 === this.nodes.length) return left;
      const styled = wrap(name, this.nodes.slice(node + 1));
      this.forget(opener + 1);
      this.nodes.length = node;
      this.nodes.push(char.repeat(opened - used), styled);
      if (opened === used) this.forget(opener);
      else this.open[opener].count = opened - used;
      left -= used;
    }
    return left;
  }

  wait(char, count) {
    this.open.push({ char, count, node: this.nodes.length });
    this.waiting[char] = (this.waiting[char] ?? 0) + 1;
  }

  /** Drops the delimiters from an index on, and one other: they stay the texts that they are. */
  forget(from, other = null) {
    const dropped = this.open.splice(from);
    if (other !== null && other < from) dropped.push(...this.open.splice(other, 1));
    for (const delimiter of dropped) this.waiting[delimiter.char]--;
  }
}

/** By length: where the last run of so many backticks begins. */
function lastRuns(text) {
  return new Map([...text.matchAll(/`+/g)].map((run) => [run[0].length, run.index]));
}

function wrap(name, nodes) {
  const element = document.createElement(name);
  element.append(...nodes);
  return element;
}

/** A link, or null if its address is not absolute or has another scheme. */
function anchor(address, nodes) {
  const url = URL.canParse(address) ? new URL(address) : null;
  if (!SCHEMES.has(url?.protocol)) return null;
  const element = wrap("a", nodes);
  element.href = url.href;
  element.rel = "noopener noreferrer";
  element.target = "_blank";
  return element;
}
