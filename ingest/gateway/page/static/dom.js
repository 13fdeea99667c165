// Elements are made here, and nowhere from markup: names of objects are what strangers wrote, and become text nodes only.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element; `attributes` beginning with "on" are listeners, true and false set or leave out. Strings become text. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svgElement(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Text for a live region, written only when it changed: what is written again would be read out again. */
export function say(region, text) {
  if (region.textContent !== text) region.textContent = text;
}

/** Opens a dialog; resolves with true when `act` went through after its form was sent, with false when it was closed. */
export function ask(dialog, act) {
  const form = dialog.querySelector("form");
  return new Promise((resolve) => {
    let done = false;
    let acting = false;
    const submit = async (event) => {
      event.preventDefault();
      if (acting) return;
      acting = true;
      done = await act();
      acting = false;
      if (done) dialog.close();
    };
    const cancel = () => dialog.close();
    const button = form.querySelector("button[value=cancel]");
    form.addEventListener("submit", submit);
    button.addEventListener("click", cancel);
    dialog.addEventListener(
      "close",
      () => {
        form.removeEventListener("submit", submit);
        button.removeEventListener("click", cancel);
        resolve(done);
      },
      { once: true },
    );
    dialog.showModal();
  });
}
