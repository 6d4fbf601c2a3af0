// One model in ONNX Runtime Web: a decoder's cached steps, or an encoder's calls. Shared by Node and the page.

const ZERO = { float32: Float32Array, float16: Uint16Array, int64: BigInt64Array };
const names = { input_ids: "ids", attention_mask: "mask", position_ids: "positions", token_type_ids: "types" };

export class Model {
  // settings: { threads, provider, inputs: {name: {type, shape}}, batch }; files: { model, data: [{ path, data }] }
  static async open(ort, settings, files) {
    ort.env.wasm.numThreads = settings.threads;
    const session = await ort.InferenceSession.create(files.model, {
      executionProviders: [settings.provider],
      externalData: files.data,
      graphOptimizationLevel: "all",
    });
    return new Model(ort, session, settings);
  }

  constructor(ort, session, settings) {
    Object.assign(this, { ort, session, settings });
    this.reset();
  }

  reset() {
    this.caches = {};
    for (const [name, { type, shape }] of Object.entries(this.settings.inputs)) {
      if (!name.startsWith("past_key_values.")) continue;
      this.caches[name] = new this.ort.Tensor(type, new ZERO[type](0), [this.settings.batch, shape[1], 0, shape[3]]);
    }
  }

  tensor(values, shape) {
    return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
  }

  // request: { ids, mask, positions, types: flat arrays, batch, length, total, keep }. Gives { ns, outputs: {name: tensor} }.
  async run(request) {
    const feed = { ...this.caches };
    for (const [name, key] of Object.entries(names)) {
      if (!(name in this.settings.inputs) || !request[key]) continue;
      const width = name === "attention_mask" ? request.total : request.length;
      feed[name] = this.tensor(request[key], [request.batch, width]);
    }
    if ("num_logits_to_keep" in this.settings.inputs) feed.num_logits_to_keep = this.tensor([request.keep], [1]);
    const start = performance.now();
    const outputs = await this.session.run(feed);
    if (outputs.logits) await outputs.logits.getData();
    const ns = Math.round((performance.now() - start) * 1e6);
    for (const name of Object.keys(this.caches)) {
      this.caches[name].dispose?.();
      this.caches[name] = outputs[name.replace("past_key_values", "present")];
    }
    return { ns, outputs };
  }

  // What goes back: float32 bytes of the outputs that are asked for, one after another.
  static async bytes(outputs, wanted) {
    const parts = [];
    for (const name of wanted) parts.push(await outputs[name].getData());
    const shapes = wanted.map((name) => outputs[name].dims);
    const flat = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
    let at = 0;
    for (const part of parts) {
      flat.set(part, at);
      at += part.length;
    }
    return { shapes, flat };
  }
}
