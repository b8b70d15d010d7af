// The AI SDK: its OpenAI provider (responses), its OpenAI-compatible provider (chat) and its Anthropic provider.
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { READ_FILE, drive, readFile, shown, take } from "./driving.mjs";
import { chatModel, messagesModel, responsesModel } from "./recipe.mjs";

const MODELS = { chat: chatModel, responses: responsesModel, messages: messagesModel };
const read_file = tool({
  description: READ_FILE.description, inputSchema: jsonSchema(READ_FILE.schema), execute: readFile,
});

const simple = async ({ api, prompt, ...more }) => (await generateText({ model: MODELS[api], prompt, maxRetries: 0, ...more })).text;

async function stream({ api, prompt }) {
  const pieces = [];
  for await (const piece of streamText({ model: MODELS[api], prompt, maxRetries: 0 }).textStream) pieces.push(shown(piece));
  return pieces;
}

// The SDK's own loop runs the tool.
async function tools({ api, prompt }) {
  const options = { model: MODELS[api], prompt, tools: { read_file }, stopWhen: stepCountIs(5), maxRetries: 0 };
  return (await generateText(options)).text;
}

// The responses model refers to earlier items by id, or sends them again if the server does not store them.
async function turns({ api, prompts, store = true }) {
  const more = { maxRetries: 0, providerOptions: { openai: { store } } };
  const messages = [];
  const texts = [];
  for (const content of prompts) {
    messages.push({ role: "user", content });
    const { response, text } = await generateText({ model: MODELS[api], messages, ...more });
    messages.push(...response.messages);
    texts.push(text);
  }
  return texts;
}

async function cancel({ api, prompt }) {
  const abort = new AbortController();
  const { textStream } = streamText({ model: MODELS[api], prompt, maxRetries: 0, abortSignal: abort.signal });
  const pieces = await take(5, textStream);
  abort.abort();
  return pieces.length;
}

await drive({ simple, stream, tools, turns, cancel });
