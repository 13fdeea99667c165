// What the page can do in which namespace: each has the API whose rules hold there.

import { address, get } from "./api.js";
import { byId, element } from "./dom.js";
import { visible } from "./format.js";

export const HOME = "objects";

const at = (root) => (name) => root + encodeURIComponent(name);

/**
 * `create` and `replace`: method, headers and path of an upload. `create` of a name that is there is refused; without
 * `replace` what is there stays. `looks`: whether to look for the name before the bytes are sent.
 */
const APIS = {
  objects: {
    looks: true,
    create: { method: "PUT", path: at("/objects/"), headers: { "If-None-Match": "*" } },
    replace: { method: "PUT", path: at("/objects/"), headers: {} },
    deletes: true,
  },
  store: {
    looks: true,
    create: { method: "POST", path: at("/store/"), headers: {} },
    replace: { method: "PUT", path: at("/store/"), headers: {} },
    deletes: true,
  },
  files: { looks: true, create: { method: "POST", path: at("/files/"), headers: {} } },
  blob: { create: { method: "POST", path: at("/blob/"), headers: {} } },
  sos: { nameless: true, create: { method: "POST", path: () => "/upload", headers: {} } },
};

export const api = (namespace) => (Object.hasOwn(APIS, namespace) ? APIS[namespace] : {});

/** Shows them all, `current` marked. ApiError. */
export async function showNamespaces(current) {
  const { namespaces } = await get("/catalog/namespaces", { quiet: true });
  const all = [...new Set([HOME, ...namespaces, current])];
  byId("namespaces").replaceChildren(
    ...all.map((namespace) =>
      element(
        "li",
        {},
        element(
          "a",
          { href: "#" + new URLSearchParams({ namespace }), "aria-current": namespace === current && "page" },
          element("bdi", {}, visible(namespace)),
        ),
      ),
    ),
  );
}

/** Where an object is downloaded from without a token. */
export const place = (namespace, name) => address("/catalog/object", { namespace, name });
