// The page: what is looked at stands in the address behind the #, so that it can be kept, and gone back to.

import { forgetToken, hasToken, lacksToken, whenTokenIsNeeded } from "./api.js";
import { ask, byId, say } from "./dom.js";
import { sample, watch } from "./figures.js";
import { visible } from "./format.js";
import { nextPage, refresh, showPage } from "./listing.js";
import { api, HOME, showNamespaces } from "./namespaces.js";
import { add, clearFinished, dropped, isBusy, whenStored } from "./uploads.js";

const TYPING_MS = 200; // from the last key to the search
const REFRESH_MS = 300; // from an upload's end to the list that shows it, with all others that ended meanwhile
const came = new Map(); // from which page to which, both as what stands behind the #
let typing = 0;
let refreshing = 0;

function view() {
  const asked = new URLSearchParams(location.hash.slice(1));
  return { namespace: asked.get("namespace") || HOME, prefix: asked.get("prefix") ?? "", after: asked.get("after") ?? "" };
}

const hashOf = (changes) => "#" + new URLSearchParams({ ...view(), ...changes });

function look(changes, { replace = false } = {}) {
  const hash = hashOf(changes);
  if (replace) {
    history.replaceState(null, "", hash);
    show();
  } else location.hash = hash; // hashchange shows it
}

async function show() {
  const wanted = view();
  const asked = hashOf({});
  if (document.activeElement !== byId("prefix")) byId("prefix").value = wanted.prefix;
  document.title = `${visible(wanted.namespace)} – ingest`;
  const known = api(wanted.namespace);
  byId("upload").classList.toggle("closed", !known.create);
  byId("folder-label").hidden = Boolean(known.nameless);
  await showPage(wanted); // asks for a token, if one is needed
  if (asked !== hashOf({})) return; // something else is looked at by now
  await showNamespaces(wanted.namespace).catch((error) => say(byId("list-status"), error.message));
  tokenButton();
}

function tokenButton() {
  const button = byId("token-button");
  button.hidden = !hasToken() && !lacksToken();
  say(button, lacksToken() ? "Enter token" : "Forget token");
}

function upload(files) {
  const { namespace } = view();
  const known = api(namespace);
  if (!known.create) return;
  const folder = known.nameless ? "" : byId("folder").value;
  // A system may have names that are no Unicode; ours are UTF-8.
  add(namespace, files.map(([name, file]) => [(folder + name).toWellFormed(), file]));
}

function takeFiles() {
  const input = byId("files");
  byId("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    upload([...input.files].map((file) => [file.name, file]));
    input.value = ""; // so that the same file can be chosen once more
  });
  byId("clear-queue").addEventListener("click", clearFinished);

  const veil = byId("drop-veil");
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault(); // or the browser would open what is dropped
    const { namespace } = view();
    const possible = Boolean(api(namespace).create);
    event.dataTransfer.dropEffect = possible ? "copy" : "none";
    say(veil.firstElementChild, possible ? `Drop to upload into ${visible(namespace)}` : `Nothing is uploaded into ${visible(namespace)} here`);
    veil.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) veil.hidden = true;
  });
  addEventListener("drop", async (event) => {
    veil.hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    try {
      upload(await dropped(event.dataTransfer));
    } catch (error) {
      say(byId("queue-status"), `What was dropped can't be read: ${error.message}`);
    }
  });
  addEventListener("beforeunload", (event) => {
    if (isBusy()) event.preventDefault();
  });
}

function takeSearch() {
  byId("prefix").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => look({ prefix: byId("prefix").value, after: "" }, { replace: true }), TYPING_MS);
  });
  byId("next").addEventListener("click", () => {
    const from = hashOf({});
    look({ after: nextPage() });
    came.set(location.hash, from);
  });
  // A list is read forward only: the page before this one is the one that led here, or else the first.
  byId("previous").addEventListener("click", () => (location.hash = came.get(location.hash) ?? hashOf({ after: "" })));
}

whenTokenIsNeeded(async (refused) => {
  const field = byId("token");
  field.value = "";
  say(byId("token-refused"), refused ? "The token that was given is not known to this gateway." : "");
  const given = await ask(byId("token-dialog"), async () => field.value.trim() !== "");
  return given ? field.value.trim() : null;
});
byId("token-button").addEventListener("click", () => {
  if (lacksToken()) return show().then(sample);
  forgetToken();
  return location.reload();
});
whenStored((namespace) => {
  if (namespace !== view().namespace || refreshing) return;
  refreshing = setTimeout(() => {
    refreshing = 0;
    refresh();
  }, REFRESH_MS);
});
addEventListener("hashchange", show);
takeFiles();
takeSearch();
watch();
show().then(sample);
