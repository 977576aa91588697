// The pages work without this file. It adds the arrow keys, the box of the reply that is pointed at, and following a
// run while it trains: live.json is asked every few seconds, and the page is fetched again only when it changed.
"use strict";

const SECONDS = 3;
const follow = document.body.dataset.follow;
let version = document.body.dataset.version;

document.addEventListener("keydown", (event) => {
  const film = event.target.closest(".film"); // a long strip scrolls by the same keys
  const scrolls = film && film.scrollWidth > film.clientWidth;
  const typing = event.target.closest("input, select, textarea") || (scrolls ? film : null);
  if (event.key === "Escape" && typing) typing.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = event.shiftKey
    ? { ArrowLeft: "earlier", ArrowRight: "later" }
    : { ArrowLeft: "previous", ArrowRight: "next" };
  const target = document.getElementById(event.key === "/" ? "q" : keys[event.key] || "");
  if (!target) return;
  event.preventDefault();
  if (event.key === "/") target.focus();
  else target.click();
});

function point(event) {
  const group = document.querySelector(".group");
  if (!group) return;
  const card = event.type === "pointerover" || event.type === "focusin" ? event.target.closest(".reply-card") : null;
  const boxes = group.querySelectorAll(".picture [data-reply]");
  let any = false;
  for (const box of boxes) {
    const on = Boolean(card) && box.dataset.reply === card.dataset.reply;
    box.classList.toggle("on", on);
    any = any || on;
  }
  group.classList.toggle("one", any);
}
for (const name of ["pointerover", "focusin"]) document.addEventListener(name, point);

const step = document.getElementById("step");
if (step) step.addEventListener("change", () => step.form.requestSubmit());

async function look() {
  const live = await (await fetch("live.json")).json();
  document.getElementById("state").textContent = live.state;
  if (live.version === version) return;
  version = live.version;
  if (follow === "page") {
    const text = await (await fetch(location.href)).text();
    const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("content");
    if (fresh) document.getElementById("content").replaceWith(document.adoptNode(fresh));
  } else if (follow === "notice" && String(live.shown_step) !== document.body.dataset.shown) {
    const note = document.getElementById("newer");
    if (!note) return location.reload(); // the first completions have come
    const link = document.createElement("a");
    link.href = "rollouts?step=" + live.shown_step;
    link.textContent = "step " + live.shown_step + " is there";
    note.replaceChildren(link);
    note.hidden = false;
  }
}

async function keepLooking() {
  const began = performance.now();
  try {
    if (!document.hidden) await look();
  } catch {
    document.getElementById("state").textContent = "the server has stopped";
  }
  // A long run's page takes its time: at most a twentieth of it is spent on following.
  setTimeout(keepLooking, Math.max(SECONDS * 1000, 20 * (performance.now() - began)));
}
if (follow) setTimeout(keepLooking, SECONDS * 1000);
