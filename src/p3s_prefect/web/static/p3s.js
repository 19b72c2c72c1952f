// Keeps a page fresh: when the station says that something changed, the page is fetched again and the sections that
// differ are replaced. Without this script the page reloads itself every ten seconds.
"use strict";

const PERIOD_MS = 1000;   // at most one fetch a second
const POLL_MS = 15000;    // in case an event was missed
const LOST_MS = 20000;    // without an answer for this long, the page says so
const shown = new Map();
let heardAt = Date.now();
let fetchedAt = 0;
let waiting = null;
// The browser's clock may be wrong: ages are counted from the station's.
let aheadMs = Date.now() - 1000 * Number(document.body.dataset.now);

function duration(s) {
  if (s < 1) return "moments";
  if (s < 120) return `${Math.floor(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

function tick() {
  const now = Date.now() - aheadMs;
  for (const time of document.querySelectorAll("time.ago")) {
    const text = `${duration((now - Date.parse(time.dateTime)) / 1000)} ago`;
    if (time.textContent !== text) time.textContent = text;
  }
  const lost = Date.now() - heardAt > LOST_MS && fetchedAt > heardAt;
  document.getElementById("lost").hidden = !lost;
  if (lost) document.getElementById("lost-since").textContent = new Date(heardAt).toLocaleTimeString();
}

// What a section says, apart from ages, which change by themselves.
function essence(section) {
  return section.innerHTML.replace(/(<time[^>]*>)[^<]*/g, "$1");
}

function replace(fresh) {
  for (const section of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(section.id);
    if (!other) continue;
    const says = essence(other);
    if (shown.get(section.id) === says) continue;
    shown.set(section.id, says);
    const focused = section.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    section.replaceChildren(...other.childNodes);
    if (focused) section.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }
  document.title = fresh.title;
  document.getElementById("asof").replaceChildren(...fresh.getElementById("asof").childNodes);
}

async function refresh() {
  waiting = null;
  fetchedAt = Date.now();
  try {
    const response = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!response.ok) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    aheadMs = Date.now() - 1000 * Number(fresh.body.dataset.now);
    heardAt = Date.now();
    replace(fresh);
    tick();
  } catch {
    // The banner tells when this lasts.
  }
}

function soon() {
  if (waiting === null && !document.hidden) {
    waiting = setTimeout(refresh, Math.max(0, fetchedAt + PERIOD_MS - Date.now()));
  }
}

for (const section of document.querySelectorAll("[data-live]")) shown.set(section.id, essence(section));
new EventSource("/api/events").addEventListener("changed", soon);
document.addEventListener("visibilitychange", soon);
setInterval(soon, POLL_MS);
setInterval(tick, 1000);
