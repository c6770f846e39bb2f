// Vercel's AI SDK with its provider for OpenAI-compatible APIs.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, jsonSchema, streamText, tool } from "ai";
import { KEY, PARAMETERS, PERSON, PERSON_JSON, STREAMED, TEXT, URL, near, run } from "./cases.mjs";

const made = (apiKey) => createOpenAICompatible({ name: "gateway", baseURL: URL, apiKey, includeUsage: true });
const gateway = made(KEY);
const common = { maxRetries: 0, abortSignal: AbortSignal.timeout(60_000) };
const tools = { save_person: tool({ description: "Save a person.", inputSchema: jsonSchema(PARAMETERS) }) };

async function streamed(model, prompt, fields = {}) {
  const result = streamText({ model: gateway(model), prompt, ...common, ...fields, onError: () => {} });
  let text = "";
  for await (const part of result.textStream) text += part;
  return { text, calls: await result.toolCalls, usage: await result.usage };
}

const refused = (status, model, provider) =>
  assert.rejects(generateText({ model: provider(model), prompt: "x", ...common }), (error) => error.statusCode === status);

await run({
  chat: async () => assert.equal((await generateText({ model: gateway("relayed"), prompt: TEXT, ...common })).text, TEXT),
  cached: async () => {
    const { text, usage } = await streamed("relayed", TEXT);
    assert.equal(text, TEXT);
    assert.ok(usage.totalTokens > 0);
  },
  stream: async () => assert.equal((await streamed("relayed", STREAMED)).text, STREAMED),
  tools: async () => {
    const { toolCalls } = await generateText({ model: gateway("scripted"), prompt: PERSON_JSON, tools, ...common });
    assert.deepEqual(toolCalls[0].input, PERSON);
  },
  "tools stream": async () => assert.deepEqual((await streamed("scripted", PERSON_JSON, { tools })).calls[0].input, PERSON),
  json: async () => {
    const schema = jsonSchema(PARAMETERS);
    const { object } = await generateObject({ model: gateway("relayed"), prompt: PERSON_JSON, schema, ...common });
    assert.deepEqual(object, PERSON);
  },
  embeddings: async () =>
    near((await embed({ model: gateway.textEmbeddingModel("scripted"), value: "x", ...common })).embedding),
  "unknown model": () => refused(404, "nope", gateway),
  "wrong key": () => refused(401, "relayed", made("sk-wrong")),
});
