// Runs GGUF files in llama.cpp. Reads a list of requests from standard input, writes a list of
// answers as the last line:
// {file, prompt, tokens}: the greedy continuation → {prompt, tokens, text}, the first two as ids;
// {file, prompt, steps}: decoding speed → {seconds}, the median from one id to the next;
// {file, windows}: lists of ids → {nll}, the mean over all ids but each list's first, in nats.
import {readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [folder] = process.argv.slice(2);
const installed = createRequire(`${folder}/package.json`).resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(installed));
const maxThreads = Number(process.env.OMP_NUM_THREADS);
const llama = await getLlama({build: "never", gpu: false, maxThreads, logLevel: "error"});

async function complete(model, wanted) {
    const context = await model.createContext({contextSize: 128});
    const prompt = model.tokenize(wanted.prompt);
    const tokens = [];
    const choices = context.getSequence().evaluate(prompt, {temperature: 0, yieldEogToken: true});
    for await (const token of choices) {
        if (tokens.push(token) === wanted.tokens) break;
    }
    return {prompt, tokens, text: model.detokenize(tokens, true)};
}

// The logits of the id that follows and of the likeliest (at temperature 0 that is the selected
// one), and the sum of exp(logit − largest).
function question(next) {
    const logits = {filter: {tokens: [next], includeSelected: true}};
    return {generateNext: {logits, totalLogitWeight: true, options: {temperature: 0}}};
}

async function score(model, windows) {
    const context = await model.createContext({contextSize: Math.max(128, windows[0].length)});
    const sequence = context.getSequence();
    let sum = 0, count = 0;
    for (const ids of windows) {
        await sequence.clearHistory();
        const input = ids.map((id, i) => i + 1 < ids.length ? [id, question(ids[i + 1])] : id);
        const answers = await sequence.controlledEvaluate(input);
        ids.slice(1).forEach((id, i) => {
            const {logits, totalLogitWeight} = answers[i].next;
            sum += Math.max(...logits.values()) + Math.log(totalLogitWeight) - logits.get(id);
            count++;
        });
    }
    return {nll: sum / count};
}

async function time(model, wanted) {
    const context = await model.createContext({contextSize: 1024});
    const times = [];
    const next = context.getSequence().evaluate(model.tokenize(wanted.prompt), {yieldEogToken: true});
    for await (const _ of next) {
        if (times.push(performance.now()) > wanted.steps) break;
    }
    const seconds = times.slice(1).map((now, i) => (now - times[i]) / 1000).sort((a, b) => a - b);
    return {seconds: seconds[Math.floor(seconds.length / 2)]};
}

function answer(model, wanted) {
    if (wanted.windows) return score(model, wanted.windows);
    return wanted.steps ? time(model, wanted) : complete(model, wanted);
}

const answers = [];
for (const wanted of JSON.parse(readFileSync(0, "utf8"))) {
    const model = await llama.loadModel({modelPath: wanted.file});
    answers.push(await answer(model, wanted));
    await model.dispose();
}
console.log(JSON.stringify(answers));
process.exit(0);
