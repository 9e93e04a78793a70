// Greedy continuations by llama.cpp. Reads [{file, prompt, tokens}] from standard input, writes
// [{prompt, tokens, text}] (token numbers, and the continuation's text) as the last line.
import {readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [folder] = process.argv.slice(2);
const installed = createRequire(`${folder}/package.json`).resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(installed));
const llama = await getLlama({build: "never", gpu: false, maxThreads: 2, logLevel: "error"});

const results = [];
for (const wanted of JSON.parse(readFileSync(0, "utf8"))) {
    const model = await llama.loadModel({modelPath: wanted.file});
    const context = await model.createContext({contextSize: 128});
    const prompt = model.tokenize(wanted.prompt);
    const tokens = [];
    const choices = context.getSequence().evaluate(prompt, {temperature: 0, yieldEogToken: true});
    for await (const token of choices) {
        if (tokens.push(token) === wanted.tokens) break;
    }
    results.push({prompt, tokens, text: model.detokenize(tokens, true)});
    await model.dispose();
}
console.log(JSON.stringify(results));
process.exit(0);
