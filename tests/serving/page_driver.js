// Drives the chat page in a browser: renders the texts that the test gives, then holds conversations with a scripted
// server, and leaves what it saw as JSON in the document. Loaded before the page's own script.

const data = JSON.parse(document.getElementById("texts").textContent);
const replies = [];  // of the scripted server, in order: functions that return a Response or throw
const sent = [];  // the messages of each request
const $ = (id) => document.getElementById(id);

const json = (body, status = 200) => new Response(JSON.stringify(body), { status });
const failed = (status, message, code) => () => json({ error: { message, code } }, status);
const full = failed(400, "the context holds 9 tokens", "context_length_exceeded");
const unreachable = () => { throw new TypeError("Failed to fetch"); };

function stream(texts, isWhole = true) {
  const chunk = (content) => ({ choices: [{ delta: { content }, finish_reason: null }] });
  const event = (text) => `data: ${JSON.stringify(chunk(text))}\n\n`;
  return () => new Response(new ReadableStream({
    start(controller) {
      for (const text of texts) controller.enqueue(new TextEncoder().encode(event(text)));
      if (isWhole) controller.enqueue(new TextEncoder().encode("data: [DONE]\n\n"));
      controller.close();
    },
  }));
}

window.fetch = async (path, options) => {
  if (path === "v1/models") return json({ data: [{ id: "production", version: "v", max_model_len: 9 }] });
  sent.push(JSON.parse(options.body).messages.map(({ content }) => content));
  return replies.shift()();
};

const idle = async () => {
  do await new Promise((done) => setTimeout(done, 20)); while (replies.length || $("send").hidden);
};

async function say(text, ...expected) {
  replies.push(...expected);
  $("text").value = text;
  $("form").requestSubmit();
  await idle();
  return seen();
}

async function click(label, ...expected) {
  replies.push(...expected);
  [...document.querySelectorAll(".actions button")].find((button) => button.textContent === label).click();
  await idle();
  return seen();
}

/** What the page shows, and what was sent since the last look. */
function seen() {
  const texts = (selector) => [...document.querySelectorAll(selector)].map((element) => element.textContent);
  return {
    said: texts(".user .text"), answers: texts(".body"), errors: texts(".error"), buttons: texts(".actions button"),
    dropped: texts(".dropped .text"), boundary: texts(".boundary"), input: $("text").value, sent: sent.splice(0),
  };
}

async function conversations() {
  const found = {};
  found.unreachable = await say("hello", unreachable);
  found.again = await click("Try again", stream(["Hel", "**lo**"]));
  found.broken = await say("half?", stream(["one ", "half"], false));
  found.after = await say("next", stream(["ok"]));
  found.unanswered = await say("edit me", failed(429, "the server is busy", "queue_full"));
  found.edited = await click("Edit message");
  found.exceeded = await say("more", full);
  found.smaller = await click("Go on without the oldest turns", full, stream(["fits"]));
  found.later = await say("still more", full, stream(["fits too"]));
  found.alone = await say("last", full, full, full);
  found.left = await say("on", stream(["ok"]));
  return found;
}

function rendered(show) {
  return data.map((text) => {
    const element = document.createElement("div");
    if (text.length < 100) for (let end = 1; end < text.length; end++) show(element, text.slice(0, end));  // it arrives
    show(element, text);
    return { html: element.innerHTML, text: element.textContent };
  });
}

/** By placeholder: the pixels that it takes, and those that its input has. */
function placeholders() {
  const pen = document.createElement("canvas").getContext("2d");
  return Object.fromEntries([...document.querySelectorAll("[placeholder]")].map((input) => {
    const style = getComputedStyle(input);
    pen.font = style.font;
    const room = input.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const arrows = input.type === "number" ? 16 : 0;  // as Chromium draws them unless a style hides them
    return [input.placeholder, [pen.measureText(input.placeholder).width, room - arrows]];
  }));
}

async function all() {
  const { show } = await import("./markdown.js");
  return { placeholders: placeholders(), rendered: rendered(show), conversations: await conversations() };
}

addEventListener("load", async () => {
  const found = await all().catch((error) => ({ failure: `${error.stack}\n${document.body.innerText}` }));
  document.body.replaceChildren(document.createElement("pre"));
  document.body.firstChild.textContent = JSON.stringify(found);
});
