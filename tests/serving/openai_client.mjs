// The official openai package for JavaScript against a running server.
//
//   npm install --prefix FOLDER openai
//   unicorn serve --model smollm2-135m &
//   node tests/serving/openai_client.mjs http://127.0.0.1:8000 FOLDER [API_KEY]
//
// FOLDER is where the package was installed. What fails is an exception with its line, and the exit code is not 0.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [base, folder, apiKey = 'none'] = process.argv.slice(2);
const require = createRequire(join(folder, 'index.js'));
const { default: OpenAI } = require('openai');

const client = new OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const ask = {
  model,
  messages: [{ role: 'user', content: 'Name three colours of the rainbow.' }],
  max_tokens: 24,
  temperature: 0,
};
const tools = [
  {
    type: 'function',
    function: {
      name: 'get_weather',
      parameters: {
        type: 'object',
        properties: { city: { type: 'string', enum: ['Oslo', 'Rome'] } },
        required: ['city'],
        additionalProperties: false,
      },
    },
  },
];

const checks = {
  async whole() {
    const answer = await client.chat.completions.create(ask);
    assert.ok(answer.choices[0].message.content.length > 0);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  },
  async streamed() {
    const whole = await client.chat.completions.create(ask);
    let text = '';
    let usage;
    const stream = await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? '';
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  },
  async gathered() {
    const runner = client.chat.completions.stream({ ...ask, max_tokens: 100, tools, tool_choice: 'required' });
    const answer = await runner.finalChatCompletion();
    assert.equal(answer.choices[0].finish_reason, 'tool_calls');
    const call = answer.choices[0].message.tool_calls[0].function;
    assert.equal(call.name, 'get_weather');
    assert.ok(['Oslo', 'Rome'].includes(JSON.parse(call.arguments).city));
  },
  async structured() {
    const schema = { type: 'object', properties: { n: { enum: [1, 2] } }, required: ['n'], additionalProperties: false };
    const response_format = { type: 'json_schema', json_schema: { name: 'x', strict: true, schema } };
    const answer = await client.chat.completions.create({ ...ask, response_format });
    assert.ok([1, 2].includes(JSON.parse(answer.choices[0].message.content).n));
  },
  async responded() {
    const ask = { model, input: 'Name a colour.', max_output_tokens: 16, temperature: 0 };
    const whole = await client.responses.create(ask);
    const kinds = [];
    let text = '';
    for await (const event of await client.responses.create({ ...ask, stream: true })) {
      kinds.push(event.type);
      if (event.type === 'response.output_text.delta') text += event.delta;
    }
    assert.equal(text, whole.output_text);
    assert.equal(kinds[0], 'response.created');
    assert.ok(['response.completed', 'response.incomplete'].includes(kinds.at(-1)));
  },
  async embedded() {
    // The package asks for base64 and decodes it.
    const { data } = await client.embeddings.create({ model, input: ['a cat', 'a dog'] });
    for (const { embedding } of data) assert.ok(Math.abs(Math.hypot(...embedding) - 1) < 1e-4);
  },
  async refused() {
    await assert.rejects(client.chat.completions.create({ ...ask, temperature: 9 }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      return error.param === 'temperature' && error.code === 'invalid_value';
    });
    await assert.rejects(client.chat.completions.create({ ...ask, model: 'none-such' }), OpenAI.NotFoundError);
  },
  async aborted() {
    const stream = await client.chat.completions.create({ ...ask, max_tokens: 500, stream: true });
    for await (const _ of stream) break;
    stream.controller.abort();
    assert.ok((await client.chat.completions.create(ask)).choices.length === 1);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(`ok ${name}`);
}
