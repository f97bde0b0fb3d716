#!/usr/bin/env -S node --jitless --no-expose-wasm
// A plugin in JavaScript: shout(text) -> TEXT, and count(items) -> their number, which it also logs.
//
// It reads and writes lines of JSON on descriptor 3; docs/reference/plugin-protocol.md says what is in them. node is
// started as an interpreter only: to compile while it runs it would need the grant native:jit, and more memory.
"use strict";

const net = require("node:net");
const readline = require("node:readline");

const host = new net.Socket({ fd: Number(process.env.RINGFENCE_FD), readable: true, writable: true });
const say = (message) => host.write(JSON.stringify(message) + "\n");

const functions = {
  shout(text) {
    if (typeof text?.String !== "string") throw new TypeError("shout takes one text");
    return { String: text.String.toUpperCase() };
  },
  count(items) {
    if (!Array.isArray(items?.List)) throw new TypeError("count takes one list");
    say({ type: "log", level: "info", message: `counting ${items.List.length} items` });
    return { Int: items.List.length };
  },
};

const answers = {
  load: () => say({ type: "loaded", functions: { shout: "(text: str) -> str", count: "(items: list) -> int" } }),
  call({ id, function: name, args }) {
    try {
      if (!Object.hasOwn(functions, name)) throw new RangeError(`there is no ${name}`);
      say({ type: "result", id, value: functions[name](...args) });
    } catch (error) {
      say({ type: "error", id, error: error.name, message: error.message });
    }
  },
  stop() {
    say({ type: "bye" });
    host.end();
  },
};

readline.createInterface({ input: host }).on("line", (line) => {
  const message = JSON.parse(line);
  answers[message.type]?.(message); // of what is not known here nothing is expected
});
say({ type: "hello", protocol: 1, runtime: "node", version: process.versions.node });
