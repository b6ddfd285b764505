"use strict";
const id = name => document.getElementById(name);
const key = name => `inlay-${STUDY.study}-${name}`;
let annotator = "", saved = [], done = new Set(), order = [], steps = [], began = 0;

// The same order after a reload, another one for everybody else.
function shuffled(items, word) {
  let state = 2166136261;
  for (const sign of STUDY.study + annotator + word) state = Math.imul(state ^ sign.codePointAt(0), 16777619);
  const next = () => {
    state = state + 0x6D2B79F5 | 0;
    let value = Math.imul(state ^ state >>> 15, 1 | state);
    value = value + Math.imul(value ^ value >>> 7, 61 | value) ^ value;
    return ((value ^ value >>> 14) >>> 0) / 4294967296;
  };
  return items.map(item => [next(), item]).sort((a, b) => a[0] - b[0]).map(([, item]) => item);
}

const place = name => `pictures/${name}.jpg`;
const named = rating => rating.trial + " " + rating.question;
const store = () => localStorage.setItem(key(annotator), JSON.stringify(saved));

// What the server has not got yet is sent again, until it has.
async function send() {
  const served = location.protocol.startsWith("http");
  for (const rating of served ? saved.filter(each => !each.sent) : []) {
    const {sent, ...body} = rating;
    try {
      const answer = await fetch("api/ratings", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)});
      if (!answer.ok) break;
      rating.sent = true; store();
    } catch { break; }
  }
  const left = saved.filter(each => !each.sent).length;
  id("state").textContent = left ? `${left} answers are kept in this browser only` : saved.length ? "all answers are saved" : "";
  id("download").hidden = !left;
}

id("begin").onsubmit = async event => {
  event.preventDefault();
  annotator = id("name").value.trim();
  localStorage.setItem(key(""), annotator);
  saved = JSON.parse(localStorage.getItem(key(annotator)) || "[]");
  done = new Set(saved.map(named));
  if (location.protocol.startsWith("http")) try {
    const answer = await fetch("api/ratings?annotator=" + encodeURIComponent(annotator));
    if (answer.ok) for (const rating of await answer.json()) done.add(named(rating));
  } catch { /* the page works by itself, too */ }
  steps = shuffled(STUDY.trials, "trials").flatMap(trial => STUDY.questions.map(question => ({trial, question})));
  id("begin").hidden = true;
  await send(); show();
};

function show() {
  const left = steps.filter(step => !done.has(step.trial.id + " " + step.question.id));
  id("progress").value = 1 - left.length / steps.length;
  id("trial").hidden = !left.length; id("end").hidden = Boolean(left.length);
  if (!left.length) return;
  const {trial, question} = left[0];
  order = []; began = performance.now();
  id("question").textContent = question.text;
  const two = trial.candidates.length === 2;
  id("how").textContent = two ? "Choose the better one." : "Choose the best one first, then the next best, and so on.";
  id("background").src = place(trial.background);
  id("references").replaceChildren(...trial.references.map(name => Object.assign(new Image(), {src: place(name), alt: "the object"})));
  id("candidates").replaceChildren(...shuffled(trial.candidates, trial.id).map((name, number) => {
    const button = document.createElement("button"), picture = new Image();
    picture.src = place(name); picture.alt = `picture ${number + 1}`;
    button.type = "button"; button.dataset.name = name;
    button.append(picture, document.createElement("b"));
    button.onclick = () => { choose(trial, name); };
    return button;
  }));
  mark(trial);
}

function choose(trial, name) {
  if (trial.candidates.length === 2) order = [name, ...trial.candidates.filter(other => other !== name)];
  else if (!order.includes(name)) order.push(name);
  if (order.length === trial.candidates.length - 1) order.push(trial.candidates.find(other => !order.includes(other)));
  mark(trial);
}

function mark(trial) {
  const two = trial.candidates.length === 2;
  for (const button of id("candidates").children) {
    const rank = order.indexOf(button.dataset.name) + 1;
    button.setAttribute("aria-pressed", two ? rank === 1 : rank > 0);
    button.lastChild.textContent = rank && !(two && rank > 1) ? (two ? "✓" : rank) : "";
  }
  id("next").disabled = order.length < trial.candidates.length; id("undo").disabled = !order.length;
}

const current = () => steps.find(step => !done.has(step.trial.id + " " + step.question.id));
id("undo").onclick = () => { order = order.slice(0, order.length === current().trial.candidates.length ? -2 : -1); mark(current().trial); };
id("next").onclick = async () => {
  const {trial, question} = current();
  saved.push({annotator, trial: trial.id, question: question.id, order, seconds: Math.round(performance.now() - began) / 1000});
  store(); done.add(trial.id + " " + question.id);
  show(); await send();
};
id("download").onclick = () => {
  const text = saved.map(({sent, ...rating}) => JSON.stringify(rating) + "\n").join("");
  const link = Object.assign(document.createElement("a"), {download: `ratings-${annotator}.jsonl`, href: URL.createObjectURL(new Blob([text]))});
  link.click(); URL.revokeObjectURL(link.href);
};
id("name").value = localStorage.getItem(key("")) || "";
