// What a screen reader says by itself: that an answer begins, each block of it once it is whole, and how it ended.
//
// What must hold: no text is said while it still changes, and none twice.

import { make } from "./elements.js";

export class Announcer {
  said = new Map();  // by answer: how many of its blocks

  /** `region` is a live one, which only this class writes. */
  constructor(region) {
    this.region = region;
  }

  /** Says that answers begin; one that goes on says its last block again, which now goes on. */
  begin(nodes, text) {
    for (const { id } of nodes) this.said.set(id, Math.max((this.said.get(id) ?? 0) - 1, 0));
    this.region.replaceChildren(make("p", text));
  }

  /** Says the blocks of an answer that are new; the last one may still grow until the answer `isOver`. */
  follow({ id }, blocks, isOver) {
    const said = this.said.get(id) ?? 0, whole = isOver ? blocks.length : blocks.length - 1;
    for (const block of [...blocks].slice(said, Math.max(whole, said))) this.say(block.textContent);
    this.said.set(id, Math.max(said, whole));
  }

  say(text) {
    this.region.append(make("p", text));
  }
}
