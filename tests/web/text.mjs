// Token ids of texts, a rendered chat and the default generation settings in transformers.js: node text.mjs FOLDER REQUEST
import { AutoTokenizer, GenerationConfig, env } from "@huggingface/transformers";
import fs from "node:fs";
import path from "node:path";

const [folder, request] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const { texts, messages } = JSON.parse(fs.readFileSync(request, "utf8"));
const tokenizer = await AutoTokenizer.from_pretrained(path.basename(folder));
const encode = (text, add_special_tokens) => Array.from(tokenizer.encode(text, { add_special_tokens }), Number);
const defaults = new GenerationConfig(JSON.parse(fs.readFileSync(path.join(folder, "generation_config.json"), "utf8")));
console.log(
  JSON.stringify({
    bare: texts.map((text) => encode(text, false)),
    whole: texts.map((text) => encode(text, true)),
    chat: tokenizer.apply_chat_template(messages, { tokenize: false, add_generation_prompt: true }),
    ends: defaults.eos_token_id,
  }),
);
