// Conversations in the browser: IndexedDB, shared by all tabs of this page.
//
// What must hold: a tab writes only the messages that it made, each a record of its own, so no tab undoes what another
// one has added. Where the browser keeps nothing (private windows), conversations last as long as the page.

const NAME = "lifecycle-chat", VERSION = 1;
const FULL = "This browser has no more room for conversations, so the newest changes are not kept: delete some, or "
  + "export this one.";

export class StoreError extends Error {}

/** The browser's database, or one in memory; `isKept` says which. */
export async function openStore() {
  try {
    return new Store(await opened());
  } catch {  // an error of whatever kind: browsers that keep nothing differ in how they say so
    return new Memory();
  }
}

class Store {
  isKept = true;

  constructor(database) {
    this.database = database;
    database.onversionchange = () => database.close();  // a newer page in another tab wants to change it
    this.channel = new BroadcastChannel(NAME);
  }

  /** Calls back with { id, isDeleted } for each conversation that another tab changes. */
  follow(told) {
    this.channel.onmessage = ({ data }) => told(data);
  }

  /** All conversations' heads, the newest first. */
  async heads() {
    const heads = await this.transact("readonly", (heads) => heads.getAll());
    return heads.sort((a, b) => b.changed - a.changed);
  }

  /** { head, nodes } of one, or null. */
  async load(id) {
    const head = await this.transact("readonly", (heads) => heads.get(id));
    const nodes = await this.transact("readonly", (_, nodes) => nodes.index("conversation").getAll(id));
    return head ? { head, nodes } : null;
  }

  async save(head, nodes) {
    await this.transact("readwrite", (heads, messages) => {
      for (const node of nodes) messages.put(node);
      return heads.put(head);
    });
    this.channel.postMessage({ id: head.id, isDeleted: false });
  }

  async remove(id) {
    await this.transact("readwrite", (heads, messages) => {
      messages.index("conversation").getAllKeys(id).onsuccess = ({ target }) => {
        for (const key of target.result) messages.delete(key);
      };
      return heads.delete(id);
    });
    this.channel.postMessage({ id, isDeleted: true });
  }

  /** The result of a request, once its transaction is written. */
  transact(mode, ask) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(["conversations", "messages"], mode);
      const request = ask(transaction.objectStore("conversations"), transaction.objectStore("messages"));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    }).catch((error) => { throw explained(error); });  // also what throws at once: the user has cleared the site's data
  }
}

function explained(error) {
  if (error?.name === "QuotaExceededError") return new StoreError(FULL);
  return new StoreError(`This browser could not keep the newest changes (${error?.message ?? "?"}): export them.`);
}

function opened() {
  const request = indexedDB.open(NAME, VERSION);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("conversations", { keyPath: "id" });
    request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
  };
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

class Memory {
  isKept = false;
  kept = new Map();  // by id: { head, nodes by id }

  follow() {}

  async heads() {
    return [...this.kept.values()].map(({ head }) => head).sort((a, b) => b.changed - a.changed);
  }

  async load(id) {
    const found = this.kept.get(id);
    return found ? { head: found.head, nodes: [...found.nodes.values()] } : null;
  }

  async save(head, nodes) {
    const before = this.kept.get(head.id)?.nodes ?? [];
    this.kept.set(head.id, { head, nodes: new Map([...before, ...nodes.map((node) => [node.id, node])]) });
  }

  async remove(id) {
    this.kept.delete(id);
  }
}
