// Greedy tokens of many folders in transformers.js under Node: node families.mjs ROOT REQUESTS.json
import { AutoModelForCausalLM, AutoModelForSeq2SeqLM, Tensor, env } from "@huggingface/transformers";
import { readFileSync } from "node:fs";

const [root, requests] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = root;
const input = (values) => new Tensor("int64", BigInt64Array.from(values.map(BigInt)), [1, values.length]);
for (const { folder, ids, count, pair } of JSON.parse(readFileSync(requests))) {
  try {
    const kind = pair ? AutoModelForSeq2SeqLM : AutoModelForCausalLM;
    const model = await kind.from_pretrained(folder, { dtype: "fp32", device: "cpu" });
    const made = await model.generate({
      input_ids: input(ids),
      attention_mask: input(ids.map(() => 1)),
      max_new_tokens: count,
      do_sample: false,
      eos_token_id: -1,
    });
    console.log(JSON.stringify({ folder, tokens: made.tolist()[0].slice(pair ? 1 : ids.length).map(Number) }));
    await model.dispose();
  } catch (e) {
    console.log(JSON.stringify({ folder, error: String(e) }));
  }
}
