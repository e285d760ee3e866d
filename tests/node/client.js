// A client made from the .proto alone, as its users in Node make theirs. Prints one JSON object for the test to read.
// Usage: node client.js FOLDER_OF_PROTOS HOST:PORT MODEL MAX_NEW_TOKENS
"use strict";

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [folder, address, model, maxNewTokens] = process.argv.slice(2);
const definition = loader.loadSync("trimtab/v1/decoding.proto", {
  includeDirs: [folder],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { trimtab } = grpc.loadPackageDefinition(definition);
const client = new trimtab.v1.DecodingService(address, grpc.credentials.createInsecure());

const spec = (more) => ({
  model,
  chat: { messages: [{ role: "user", content: "Größe?" }] },
  sampling: { temperature: 0, seed: 4294967295 },
  stopping: { max_new_tokens: Number(maxNewTokens) },
  response: { tokens: true },
  ...more,
});

const unary = (method, request, options = {}) =>
  new Promise((resolve) => {
    client[method](request, options, (error, response) => resolve({ error, response }));
  });

// Reads a stream to its end; `until` may end it before by returning true.
const stream = (request, options = {}, until = () => false) =>
  new Promise((resolve) => {
    const messages = [];
    const call = client.GenerateStream(request, options);
    call.on("data", (message) => {
      messages.push(message);
      if (until(messages)) call.cancel();
    });
    call.on("error", (error) => resolve({ error, messages }));
    call.on("end", () => resolve({ error: null, messages }));
  });

const deadline = (milliseconds) => ({ deadline: Date.now() + milliseconds });
const code = ({ error }) => (error ? grpc.status[error.code] : "OK");

async function main() {
  const streamed = await stream({ spec: spec() });
  const tokens = streamed.messages.flatMap((m) => (m.event === "chunk" ? m.chunk.tokens : []));
  const last = streamed.messages[streamed.messages.length - 1];
  const candidate = streamed.messages.find((m) => m.event === "candidate").candidate;
  const whole = await unary("Generate", { spec: spec() });
  const models = await unary("ListModels", {});

  // As text: a conversation with a base model ends where the model begins the user's next turn.
  const endless = { chat: undefined, text: "1, 2, 3,", stopping: { max_new_tokens: 1000, ignore_eos: true } };
  const long = { spec: spec(endless) };
  const cancelled = await stream(long, {}, (messages) => messages.length === 4);
  const late = await stream(long, deadline(300));
  const bad = await unary("Generate", { spec: spec({ sampling: { temperature: NaN, top_p: 3 } }) });
  const status = bad.error.metadata.get("grpc-status-details-bin")[0];

  console.log(
    JSON.stringify({
      events: streamed.messages.map((m) => m.event),
      text: streamed.messages.map((m) => (m.event === "chunk" ? m.chunk.text_delta : "")).join(""),
      pieces: tokens.map((t) => t.piece.toString("hex")),
      pieces_are_bytes: tokens.every((t) => Buffer.isBuffer(t.piece)),
      draws: [...new Set(tokens.map((t) => t.draw))],
      finish_reason: candidate.finish_reason,
      seed: streamed.messages[0].started.seed,
      usage: last.completed.usage,
      unary_text: whole.response.candidates[0].text,
      models: models.response.models.map((m) => [m.id, m.role]),
      cancelled: code(cancelled),
      late: code(late),
      bad: code(bad),
      bad_details: status.toString("latin1"),
    }),
  );
  client.close();
}

main();
