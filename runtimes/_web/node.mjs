// Commands as JSON lines on stdin; answers on stdout: a JSON line, then as many raw bytes as it says.
import fs from "node:fs";
import path from "node:path";
import readline from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { Model } from "./session.mjs";

const dist = process.argv[2]; // onnxruntime-web's folder dist
const ort = await import(pathToFileURL(path.join(dist, "ort.node.min.mjs")).href);
const version = createRequire(import.meta.url)(path.join(dist, "..", "package.json")).version;
let model = null;

function answer(head, flat) {
  const body = flat ? Buffer.from(flat.buffer, flat.byteOffset, flat.byteLength) : Buffer.alloc(0);
  fs.writeSync(1, JSON.stringify({ ...head, bytes: body.length }) + "\n");
  for (let at = 0; at < body.length; ) {
    try {
      at += fs.writeSync(1, body, at);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}

console.log = console.error;
for await (const line of readline.createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  try {
    if (command.do === "open") {
      ort.env.wasm.wasmPaths = pathToFileURL(dist + "/").href;
      const data = command.data.map(({ path: name, file }) => ({ path: name, data: new Uint8Array(fs.readFileSync(file)) }));
      const files = { model: new Uint8Array(fs.readFileSync(command.model)), data };
      model = await Model.open(ort, command.settings, files);
      answer({ version, agent: `Node ${process.version}` });
    } else if (command.do === "run") {
      if (command.reset) model.reset();
      const { ns, outputs } = await model.run(command);
      const { shapes, flat } = await Model.bytes(outputs, command.wanted);
      answer({ ns, shapes, peak: process.resourceUsage().maxRSS * 1024 }, flat);
    }
  } catch (error) {
    answer({ error: String(error?.message ?? error) });
  }
}
