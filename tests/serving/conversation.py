"""Twenty turns with a running server: each turn computes only what is new, and the usage proves it.

    unicorn serve --model gemma3-270m &
    python3 tests/serving/conversation.py http://127.0.0.1:8000

The conversation is sent as text to /v1/completions, so that it works with base models too, in the words of Gemma's chat
template. Checked are the cached tokens of every turn, of a regeneration, of an edit of an early message, and of a second
chat with the same system prompt. The answers are begun for the model, so that their first word does not merge with a
line end: text that is read again would then have other tokens than were generated. BORDER is for merges that remain.
"""

import json
import sys
import urllib.request

BASE = sys.argv[1].rstrip("/")
BORDER = 3
SYSTEM = "<start_of_turn>user\n" + " ".join(
    f"Rule {i}: be brief, be kind, and name the source of fact number {i * 7}." for i in range(1, 25)
)
QUESTIONS = [
    "What is the largest city of the world?", "How far is the moon?", "Who wrote The Trial?", "What is a prime number?",
    "Why is the sea salty?", "Name a river in Africa.", "When was paper invented?", "What do bees eat?",
]


def post(path, body):
    request = urllib.request.Request(BASE + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=300))


def count(text):
    return post("/tokenize", {"prompt": text, "add_special_tokens": False})["count"]


def complete(prompt, tokens=24):
    got = post("/v1/completions", {"prompt": prompt, "max_tokens": tokens, "temperature": 0})
    usage = got["usage"]
    return got["choices"][0]["text"], usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def check(what, computed, new):
    print(f"{what}: {computed} tokens computed, {new} new")
    assert computed <= new + BORDER, f"{what}: {computed} tokens computed where {new} are new"


def turn(number):
    question = QUESTIONS[number % len(QUESTIONS)]
    return f"<start_of_turn>user\n{question} ({number})<end_of_turn>\n<start_of_turn>model\nIt is"


def main():
    history = SYSTEM + "<end_of_turn>\n"
    before, early = history, None
    for number in range(1, 21):
        prompt = history + turn(number)
        answer, tokens, cached = complete(prompt)
        if number > 1:
            # The last token of the answer before was never fed, nor what closes its turn.
            check(f"turn {number}", tokens - cached, count(prompt[len(before):]) + 1)
        if number == 5:
            early = history
        before = prompt + answer
        history = before + "<end_of_turn>\n"
    print(f"the conversation has {count(history)} tokens")
    _, tokens, cached = complete(prompt)
    check("turn 20 again", tokens - cached, 1)
    edited = early + turn(105)
    _, tokens, cached = complete(edited)
    check("an edit of turn 5", tokens - cached, count(edited[len(early):]) + 1)
    _, tokens, cached = complete(prompt)
    check("turn 20 after the edit", tokens - cached, 1)
    other = SYSTEM + "<end_of_turn>\n" + turn(77)
    _, tokens, cached = complete(other)
    check("another chat with the same system prompt", tokens - cached, count(turn(77)) + 1)


if __name__ == "__main__":
    main()
