// What the user sets: the models and the settings of the conversation on the page, and the API key of this tab.
//
// What must hold: an invalid number changes nothing and is pointed at. The key is in `sessionStorage` only.

import { models } from "./api.js";
import { $ } from "./elements.js";

const KEY = "lifecycle-key";
const dialog = $("settings"), fields = dialog.querySelector("form").elements;
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

export class Settings {
  cards = new Map();  // of the served models, by name

  /** `changed` is called with the names and values of settings that the user has changed, `keyed` after a new key. */
  constructor({ changed, keyed }) {
    this.changed = changed;
    $("model").addEventListener("change", ({ target }) => changed({ model: target.value }));
    $("other").addEventListener("change", ({ target }) => changed({ other: target.value }));
    $("open-settings").addEventListener("click", () => this.open());
    $("compare").addEventListener("click", () => this.compare());
    dialog.addEventListener("change", ({ target }) => this.take(target, keyed));
  }

  /** How many tokens a model takes, if it is known. */
  context(model) {
    return this.cards.get(model)?.max_model_len;
  }

  /** Asks the server for its models. */
  async load() {
    this.cards = new Map((await models(apiKey())).map((card) => [card.id, card]));
  }

  /** Shows a conversation's settings. */
  draw(settings) {
    this.settings = settings;
    fill($("model"), this.cards, settings.model);
    fill($("other"), this.cards, settings.other || [...this.cards.keys()].find((name) => name !== settings.model));
    $("other").hidden = !settings.compares;
    $("compare").setAttribute("aria-pressed", String(settings.compares));
  }

  /** The models that a question goes to. */
  asked() {
    return this.settings.compares ? [$("model").value, $("other").value] : [$("model").value];
  }

  open(name = "system") {
    for (const field of ["system", ...NUMBERS]) fields[field].value = this.settings[field] ?? "";
    fields.logprobs.checked = this.settings.logprobs;
    fields.key.value = apiKey();
    dialog.showModal();
    fields[name].focus();
  }

  compare() {
    this.changed({ compares: !this.settings.compares, other: $("other").value });
  }

  take(input, keyed) {
    if (!input.reportValidity()) return;
    if (input.name === "key") {
      sessionStorage.setItem(KEY, input.value.trim());
      keyed();
    } else if (NUMBERS.includes(input.name)) {
      this.changed({ [input.name]: input.value === "" ? null : input.valueAsNumber });
    } else {
      this.changed({ [input.name]: input.type === "checkbox" ? input.checked : input.value });
    }
  }
}

/** Shows the served models, and the chosen one even if it is not among them any more. */
function fill(select, cards, chosen) {
  const names = [...cards.keys()];
  const gone = chosen && !cards.has(chosen) ? [new Option(`${chosen} (not served now)`, chosen)] : [];
  const options = [...names.map((name) => new Option(name, name)), ...gone];
  const isSame = options.length === select.length && options.every(({ text }, i) => text === select[i].text);
  if (!isSame) select.replaceChildren(...options);  // drawn anew it would close under the user's hand
  select.value = chosen || (names[0] ?? "");
}
