// Fetches an endpoint in place and shows what came back through whatever stands in front of this origin.
"use strict";

const shown = document.querySelector("#answer");
const mostShown = 4000;

for (const link of document.querySelectorAll("a[data-try]")) {
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    shown.textContent = `GET ${link.getAttribute("href")} …`;
    shown.scrollIntoView({ block: "nearest" });
    try {
      const started = performance.now();
      // The browser's own cache would hide what the edge does.
      const answer = await fetch(link.href, { cache: "no-store" });
      const headersAfter = Math.round(performance.now() - started);
      const body = await answer.text();
      const bodyAfter = Math.round(performance.now() - started);
      const headers = [...answer.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
      const cut = body.length > mostShown ? `${body.slice(0, mostShown)}\n… ${body.length} characters` : body;
      shown.textContent = `${answer.status} ${answer.statusText} (headers after ${headersAfter} ms, all after ${bodyAfter} ms)\n${headers}\n\n${cut}`;
    } catch (fault) {
      shown.textContent = String(fault);
    }
  });
}
