// What is shown of a conversation. Whatever a person or a model says goes in as text and never as HTML.

const NEAR = 60; // pixels: whoever has scrolled further up reads there, and is left there

export function element(name, kind, ...children) {
  const made = document.createElement(name);
  made.className = kind;
  made.append(...children);
  return made;
}

export function picture(url, place) {
  const made = element("img", "picture");
  made.src = url;
  made.alt = `Picture ${place + 1}`;
  return made;
}

// Changes `log` and keeps its end in view, if it was.
export function follow(log, change) {
  const near = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;
  change();
  if (near) log.scrollTop = log.scrollHeight;
}

export function showQuestion(log, words, urls) {
  const made = element("article", "question");
  made.setAttribute("aria-label", "You");
  if (urls.length) made.append(element("div", "row", ...urls.map(picture)));
  if (words) made.append(said(words));
  log.append(made);
  log.scrollTop = log.scrollHeight;
  return made;
}

// An answer that grows by `add(piece)` until `end(how)`; pieces as of api.js. `text` is what it has said so far.
export function showAnswer(log) {
  const text = new Text(), speed = element("p", "speed", "reading…"), start = performance.now();
  const made = element("article", "answer growing", said(text), speed);
  let first = 0, tokens = 0, cut = false;
  made.setAttribute("aria-label", "Model");
  made.setAttribute("aria-busy", "true"); // to be read out when it is whole
  follow(log, () => log.append(made));

  function tell(how) {
    const seconds = (performance.now() - start) / 1000;
    const parts = [`${tokens} token${tokens === 1 ? "" : "s"}`];
    if (first) parts.push(`${(tokens / seconds).toFixed(1)} tokens/s`, `first after ${first.toFixed(2)} s`);
    speed.textContent = [...parts, ...how].join(" · ");
  }

  return {
    article: made,
    get text() {
      return text.data;
    },
    add({ text: more, tokens: count, end, usage }) {
      if (!first && (more || count)) first = (performance.now() - start) / 1000;
      tokens = usage?.completion_tokens ?? tokens + count;
      cut ||= end === "length";
      follow(log, () => {
        if (more) text.appendData(more);
        if (first) tell([]);
      });
    },
    end(...how) {
      made.classList.remove("growing");
      made.removeAttribute("aria-busy");
      follow(log, () => tell([...(cut ? ["at the length limit"] : []), ...how]));
    },
  };
}

function said(content) {
  const made = element("p", "said", content);
  made.dir = "auto";
  return made;
}
