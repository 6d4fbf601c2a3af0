// Greedy tokens of a folder in transformers.js under Node: node node.mjs FOLDER DTYPE "ids" COUNT
import { AutoModelForCausalLM, Tensor, env } from "@huggingface/transformers";
import path from "node:path";

const [folder, dtype, text, count] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const ids = JSON.parse(text);
const model = await AutoModelForCausalLM.from_pretrained(path.basename(folder), { dtype, device: "cpu" });
const input = (values) => new Tensor("int64", BigInt64Array.from(values.map(BigInt)), [1, values.length]);
const made = await model.generate({
  input_ids: input(ids),
  attention_mask: input(ids.map(() => 1)),
  max_new_tokens: Number(count),
  do_sample: false,
  eos_token_id: -1,
});
console.log(JSON.stringify({ tokens: made.tolist()[0].slice(ids.length).map(Number) }));
