// Outputs of encoders with heads in transformers.js under Node: node heads.mjs ROOT REQUESTS.json
import { Tensor, env, pipeline } from "@huggingface/transformers";
import * as transformers from "@huggingface/transformers";
import { readFileSync } from "node:fs";

const [root, requests] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = root;
const input = (values) => new Tensor("int64", BigInt64Array.from(values.map(BigInt)), [1, values.length]);
for (const { folder, kind, ids, names, text } of JSON.parse(readFileSync(requests))) {
  try {
    if (text) {
      const classify = await pipeline("text-classification", folder, { dtype: "fp32", device: "cpu" });
      console.log(JSON.stringify({ folder, outputs: await classify(text, { top_k: 3 }) }));
      continue;
    }
    const model = await transformers[kind].from_pretrained(folder, { dtype: "fp32", device: "cpu" });
    const given = { input_ids: input(ids), attention_mask: input(ids.map(() => 1)) };
    if (names.types) given.token_type_ids = input(ids.map(() => 0));
    const made = await model(given);
    console.log(JSON.stringify({ folder, outputs: names.outputs.map((name) => Array.from(made[name].data)) }));
    await model.dispose();
  } catch (e) {
    console.log(JSON.stringify({ folder, error: String(e) }));
  }
}
