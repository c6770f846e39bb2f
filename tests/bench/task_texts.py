"""Prompts by task that the classifier of `gateway/tasks.py` learns from: frames, word lists and code of the Python installation.

Nothing here is taken from a data set. The prompts that judge it are others: `task_prompts.toml`, and the sets named in `tasks.py`.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar

LANGUAGES = "English German French Spanish Italian Portuguese Dutch Polish Russian Turkish Arabic Hebrew Hindi Japanese Korean Chinese Greek Swedish Danish Norwegian Finnish Czech Ukrainian Vietnamese Thai Latin Romanian Hungarian".split()
SPRACHEN = "Deutsche Englische Französische Spanische Italienische Polnische Russische Türkische Japanische".split()
LANGUES = "anglais français allemand espagnol italien portugais japonais arabe russe néerlandais".split()
IDIOMAS = "inglés español francés alemán italiano portugués japonés chino árabe".split()
PROGRAMMING = "Python JavaScript TypeScript Java C C++ C# Go Rust Ruby PHP Kotlin Swift SQL Bash PowerShell Haskell Scala R Lua Perl".split()
LIBRARIES = "pandas numpy React Django Flask Spring Vue Kubernetes Docker PyTorch FastAPI Express Postgres Redis Terraform asyncio Git nginx".split()
PEOPLE = "Anna Tom Maria James Li Ahmed Sofia Ken Priya Lucas Emma Omar Julia Daniel Chloe Igor Fatima Ben Rosa Kofi".split()
THINGS = "apples books pencils tickets cookies marbles chairs stamps bottles cards eggs shirts coins boxes flowers lamps".split()
PLACES = "Paris Berlin Tokyo Lagos Lima Oslo Cairo Toronto Mumbai Madrid Seoul Nairobi Vienna Lisbon Chicago Dublin".split()
TOPICS = (
    "photosynthesis, the French Revolution, black holes, inflation, the immune system, plate tectonics, Buddhism, the Cold War, "
    "DNA replication, supply and demand, the water cycle, quantum entanglement, the Roman Empire, jazz, vaccines, volcanoes, "
    "impressionism, monetary policy, the theory of relativity, game theory, coral reefs, the Magna Carta, evolution, antibiotics, "
    "the Silk Road, climate change, constitutional law, the heart, solar power, Stoicism, tides, the stock market, whales, "
    "the Industrial Revolution, contract law, cognitive bias, osmosis, semiconductors, the Ottoman Empire, glaciers, copyright, "
    "the periodic table, nuclear fusion, Renaissance art, child development, chess, migration of birds, the nervous system, "
    "renewable energy, tuberculosis, the Treaty of Versailles, acids and bases, feudalism, the carbon cycle, diabetes, opera"
).split(", ")
FIGURES = "Napoleon, Marie Curie, Confucius, Isaac Newton, Cleopatra, Gandhi, Aristotle, Darwin, Mozart, Lincoln, Ada Lovelace, Kant".split(
    ", "
)
GENRES = "short story, poem, haiku, blog post, cover letter, speech, press release, product description, song, limerick, essay, newsletter, tweet, LinkedIn post, tagline, toast, wedding speech, recommendation letter, fairy tale, film script, horror story, sonnet, headline, job advert, complaint letter, apology email, thank-you note, fundraising email, opening chapter, monologue, dialogue".split(
    ", "
)
SUBJECTS = "a lighthouse keeper, autumn in the mountains, a robot that learns to paint, our new coffee shop, a missed train, two old friends, a dragon who is afraid of fire, remote work, a used car, my late grandmother, a summer festival, our spring sale, a lost dog, the sea at night, a software release, a charity run, climate action, a difficult customer, time travel, a job as a nurse, my promotion, a family trip to Greece".split(
    ", "
)
CODING = (
    "reverses a linked list, parses a CSV file, finds duplicates in an array, checks whether a string is a palindrome, sorts a list of "
    "dictionaries by key, downloads a page and counts its links, implements a LRU cache, validates an email address, computes the "
    "Levenshtein distance, merges two sorted arrays, traverses a binary tree, reads a config file, sends a POST request, debounces a "
    "button click, converts Roman numerals, finds the shortest path in a graph, flattens a nested list, renames all files in a folder, "
    "connects to a database, generates a random password, counts words in a text file, implements quicksort, rotates a matrix, "
    "handles file uploads, retries on failure with backoff, draws a bar chart, checks if a number is prime, prints the Fibonacci numbers"
).split(", ")
ERRORS = (
    "TypeError: 'NoneType' object is not subscriptable; NullPointerException; segmentation fault (core dumped); "
    "ModuleNotFoundError: No module named 'requests'; Uncaught ReferenceError: x is not defined; IndexError: list index out of range; "
    "error: expected ';' before '}' token; KeyError: 'id'; undefined is not a function; 404 from the API; a deadlock; "
    "cannot borrow `x` as mutable; permission denied (publickey); merge conflict; CORS error; a memory leak; "
    "SyntaxError: invalid syntax; stack overflow; UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"
).split("; ")
FIELDS = (
    "names, dates, email addresses, phone numbers, prices, locations, company names, order numbers, deadlines, product names, people, "
    "organizations, skills, ingredients, symptoms, action items, keywords, invoice numbers, addresses, amounts, job titles, URLs"
).split(", ")
LABELS = (
    "positive, negative or neutral",
    "spam or not spam",
    "urgent or not urgent",
    "billing, technical, or sales",
    "sports, politics, business, or science",
    "complaint or praise",
)

SUBJECT_NOUNS = "The council, A group of researchers, The company, Our team, The old bridge, Several farmers, The museum, A local school, The minister, The orchestra, Two engineers, The hospital, A new study, The river, Most residents, The captain, The festival, A young chef".split(
    ", "
)
VERBS = "announced, rejected, opened, delayed, described, repaired, visited, discovered, sold, praised, lost, expanded, cancelled, reviewed, found, moved, welcomed, closed".split(
    ", "
)
OBJECTS = "a plan for the harbour, the annual budget, a rare species of beetle, more than forty jobs, its northern branch, a collection of letters, the results of the vote, an unusual recipe, a safer method of storage, the winter timetable, three paintings, a contract with the city, the oldest map of the region, a programme for young people".split(
    ", "
)
ENDINGS = "after a long debate, despite heavy rain, for the first time in ten years, to everyone's surprise, without giving a reason, in early spring, according to a spokesperson, because costs had doubled, near the town hall, with help from volunteers, last Tuesday, before the season began".split(
    ", "
)
FOREIGN = (
    "Der Zug nach Hamburg hat heute leider dreißig Minuten Verspätung.", "Bitte schicken Sie mir die Rechnung bis Freitag.", "Wir haben das Haus am See verkauft.",
    "Le musée est fermé le lundi et les jours fériés.", "Je voudrais réserver une table pour deux personnes ce soir.", "Nous avons bien reçu votre commande.",
    "El tren sale a las ocho de la mañana.", "Mi hermana trabaja en un hospital cerca del puerto.", "¿Dónde está la estación más cercana?",
    "Il negozio apre alle nove e chiude alle sette.", "Domani andremo al mare con gli amici.", "A reunião foi adiada para a próxima semana.",
    "De winkel is vandaag gesloten wegens verbouwing.", "Pociąg do Warszawy odjeżdża z peronu trzeciego.", "Встреча перенесена на следующий понедельник.",
    "Мы получили ваше письмо и скоро ответим.", "会议推迟到下周一上午十点。", "这家餐厅的菜很好吃。", "明日は雨が降るそうです。", "駅までの道を教えてください。",
    "회의는 다음 주 월요일로 연기되었습니다.", "القطار يغادر في الساعة الثامنة.", "Toplantı gelecek haftaya ertelendi.", "बैठक अगले सोमवार तक टाल दी गई है।", "Mötet har skjutits upp till nästa vecka.",
)  # fmt: skip

Rng = random.Random


class Passages:
    """Sentences that people might paste: those that the list `extra` brings, of documentation, and of a small grammar."""

    extra: ClassVar[list[str]] = []


@cache
def _documentation() -> list[str]:
    """Sentences of the standard library's own documentation strings and of this repository's pages."""
    from pydoc_data import topics  # noqa: PLC0415 -- a large module of text

    pages = [path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parents[2] / "docs").glob("*.md"))]
    found = re.findall(
        r"(?<=[.!?] )[A-Z][a-z][^.|`\n<>*_]{30,160}[.!?]", " ".join([*topics.topics.values(), *pages]).replace("\n", " ")
    )
    return sorted({re.sub(r"\s+", " ", one) for one in found})


def passage(rng: Rng, sentences: int = 0) -> str:
    """A few sentences about nothing, as long as what people paste."""
    count = sentences or rng.choice((1, 2, 3, 4, 6, 9))
    kind = rng.random()
    if Passages.extra and kind < 0.55:
        return " ".join(rng.choice(Passages.extra) for _ in range(count))
    if kind < 0.7:
        return " ".join(rng.choice(_documentation()) for _ in range(count))
    return " ".join(
        f"{rng.choice(SUBJECT_NOUNS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)} {rng.choice(ENDINGS)}." for _ in range(count)
    )


def functions(of: Callable[[str], bool]) -> list[str]:
    """Functions of 3 to 25 lines from the standard library's files whose name `of` takes."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        if of(path.stem):
            text = path.read_text(encoding="utf-8", errors="replace")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef) and 3 <= (node.end_lineno or 0) - node.lineno <= 25:
                    found.append(ast.get_source_segment(text, node) or "")
    return found


def other_code(rng: Rng) -> str:
    """A few lines of another language."""
    a, b, c = (
        rng.choice(("user", "order", "item", "total", "count", "index", "node", "value", "customer", "price")) for _ in range(3)
    )
    n = rng.randrange(100)
    return rng.choice(
        (
            f"SELECT {a}.id, COUNT(*) FROM {a}s JOIN {b}s ON {a}.id = {b}.{a}_id WHERE {b}.{c} > {n} GROUP BY {a}.id;",
            f"const {a} = await fetch(`/api/{b}/${{id}}`);\nif (!{a}.ok) throw new Error('{c}');\nreturn {a}.json();",
            f"for (int i = 0; i < {n}; i++) {{\n    {a}[i] = {b}[i] + {c};\n}}",
            f"public class {a.title()} {{\n  private int {b} = {n};\n  public int get{b.title()}() {{ return this.{b}; }}\n}}",
            f"fn {a}({b}: &str) -> Result<u32, Error> {{\n    let {c} = {b}.parse::<u32>()?;\n    Ok({c} + {n})\n}}",
            f'#!/bin/bash\nfor f in *.{a}; do\n  grep -c "{b}" "$f" >> {c}.txt\ndone',
            f"import React from 'react';\nexport default function {a.title()}({{ {b} }}) {{\n  return <div className=\"{c}\">{{{b}}}</div>;\n}}",
            f"func {a}({b} []int) int {{\n\t{c} := 0\n\tfor _, v := range {b} {{ {c} += v }}\n\treturn {c}\n}}",
            f".{a} {{ display: flex; margin: {n}px; color: #fff; }}",
            f"<?php\n${a} = $_GET['{b}'];\necho htmlspecialchars(${a});",
            f'{a}:\n  image: {b}:latest\n  ports:\n    - "{n}:80"\n  environment:\n    - {c.upper()}=1',
        )
    )


def code(rng: Rng, snippets: list[str]) -> str:
    source = rng.choice(snippets) if rng.random() < 0.6 else other_code(rng)
    fenced = f"```\n{source}\n```" if rng.random() < 0.5 else source
    lang, task, lib = rng.choice(PROGRAMMING), rng.choice(CODING), rng.choice(LIBRARIES)
    error = rng.choice(ERRORS)
    return rng.choice(
        (
            f"Write a {lang} function that {task}.", f"write a {lang} script which {task}", f"Can you write me a {lang} program that {task}?", f"How do I write code that {task} in {lang}?",
            f"Implement a class in {lang} that {task}. Include unit tests.", f"Give me a one-liner in {lang} that {task}", f"I need a function that {task}, in {lang}, with type hints",
            f"Develop a program in {lang} that {task}.", f"Implement an algorithm that {task} with O(n) time complexity.", f"Complexity of a function that {task}?",
            f"Fix this code:\n{fenced}", f"Why does this throw {error}?\n\n{fenced}", f"{fenced}\n\nI get {error}. What is wrong?", f"Explain what this code does.\n{fenced}", f"{source}",
            f"Refactor the following {lang} code to be more readable:\n{fenced}", f"Convert this to {lang}:\n{fenced}", f"Add docstrings and comments to this function\n{fenced}", f"Write unit tests for:\n{fenced}",
            f"Review this pull request diff.\n{fenced}", f"Is there a bug in here?\n{fenced}", f"What is the output of this program?\n{fenced}", f"Optimize this query:\n{fenced}", f"{fenced}\nmake this faster",
            f"How do I fix {error} in {lib}?", f"getting {error} when I run my {lang} app with {lib}", f"What's the difference between a list and a tuple in {lang}?", f"How to install {lib} and connect it to {rng.choice(LIBRARIES)}?",
            f"Write a regex that matches {rng.choice(('dates', 'phone numbers', 'hex colors', 'IPv4 addresses', 'HTML tags'))}.", f"Write a SQL query that returns the top {rng.randrange(2, 20)} {rng.choice(('customers', 'orders', 'products'))} by revenue.",
            "How can I undo the last commit in git?", f"Write a Dockerfile for a {lang} app using {lib}.", f"Set up a CI pipeline with {lib} for my {lang} repo", f"How do I use async and await in {lang}?",
            f"{error}", f"$ ./run.sh\n{error}\nwhat now?", f"Build a {rng.choice(('todo app', 'chat server', 'snake game', 'web scraper', 'calculator', 'blog'))} with {lib} in {lang}.", f"What does the `{rng.choice(('const', 'yield', 'volatile', 'final', 'defer', 'unsafe'))}` keyword do in {lang}?", f"Best practice for {rng.choice(('logging', 'mocking', 'error handling', 'dependency injection', 'caching'))} in {lang} unit tests?", f"Wie verbinde ich in {lib} zwei Tabellen?", f"Comment lire un fichier JSON en {lang} ?", f"¿Cómo se recorre un array en {lang}?", f"怎么在 {lang} 里连接数据库？",
            f"Schreibe eine {lang}-Funktion, die eine Liste sortiert.", f"Warum bekomme ich {error}?\n{fenced}", f"Écris une fonction {lang} qui trie un tableau.", f"Pourquoi ce code ne marche pas ?\n{fenced}",
            f"Escribe una función en {lang} que ordene una lista.", f"¿Por qué falla este código?\n{fenced}", f"Scrivi una funzione {lang} che legge un file.", f"Escreva um script em {lang} para ler um arquivo.",
            f"用 {lang} 写一个函数，读取文件并排序。", f"这段代码为什么报错？\n{fenced}", f"{lang} でファイルを読む関数を書いてください。", f"Напиши функцию на {lang}, которая сортирует список.", f"{lang} ile bir fonksiyon yaz.",
            f"Create an HTML page with a form and a button, using {lib}.", f"Design a REST API in {lib} for {rng.choice(THINGS)}.", f"Given an array of integers, implement a method that {task}.",
        )
    )  # fmt: skip


def math(rng: Rng) -> str:
    a, b, c, d = (rng.randrange(2, 90) for _ in range(4))
    who, other = rng.sample(PEOPLE, 2)
    thing, thing2 = rng.sample(THINGS, 2)
    return rng.choice(
        (
            f"What is {a} * {b}?", f"{a}+{b}-{c}", f"calculate {a} percent of {b * 10}", f"{a} divided by {b}", f"Solve for x: {a}x + {b} = {c}", f"Solve the equation x^2 - {a}x + {b} = 0.", f"Find the derivative of f(x) = {a}x^3 - {b}x + {c}.",
            f"Compute the integral of x^{a} dx from 0 to {b}.", f"Evaluate \\int_0^{{{a}}} (x^2 + {b}) dx", f"Prove that the square root of {a} is irrational.", f"What is the limit of (1 + {a}/n)^n as n goes to infinity?", f"How many ways can {a} people sit around a table?",
            f"{who} has {a} {thing}. {other} gives {who} {b} more, and then {who} sells {c} of them. How many {thing} does {who} have left?", f"{who} buys {a} {thing} for ${b} each and {c} {thing2} for ${d} each. How much does {who} spend in total?",
            f"A train travels {a} miles in {b} hours. At the same speed, how far does it go in {c} hours?", f"{who} is {a} years old, twice as old as {other}. How old will {other} be in {b} years?", f"A shop sells {thing} at {a}% off. If the price was ${b}, what is the sale price?",
            f"{who} works {a} hours a day for {b} days and earns ${c} an hour. How much money does {who} make?", f"There are {a} {thing} in each box and {b} boxes. If {c} {thing} are broken, how many are left?", f"If {who} reads {a} pages per day, how many days does it take to read {b * 10} pages?",
            f"The ratio of {thing} to {thing2} is {a}:{b}. There are {c * b} {thing2}. How many {thing} are there?", f"Half of the {a * 2} students bring {b} {thing} each, and the rest bring {c}. How many {thing} altogether?", f"{who} can paint a fence in {a} hours and {other} in {b} hours. How long together?",
            f"What is the probability of rolling a sum of {rng.randrange(2, 13)} with two dice?", f"A bag has {a} red and {b} blue marbles. What is the probability that two drawn are both red?", f"Find the area of a circle with radius {a}.", f"The sides of a triangle are {a}, {b} and {c}. What is its perimeter?",
            f"Find the determinant of the matrix [[{a}, {b}], [{c}, {d}]].", f"What are the eigenvalues of [[{a}, 1], [0, {b}]]?", f"Simplify ({a}x + {b})(x - {c}).", f"Factor x^2 + {a}x + {b}.", f"Express {a}/{b} as a decimal.", f"Convert {a} miles to kilometers", f"What is the greatest common divisor of {a * c} and {b * c}?",
            f"Is {a * 7 + 1} a prime number?", f"Find the sum of the first {a} odd numbers.", f"log base {a} of {b}", f"sqrt({a}) * {b}^2 =", f"What is the standard deviation of {a}, {b}, {c} and {d}?", f"Let f(x) = {a}x + {b}. Find f({c}).", f"How many integers satisfy |x - {a}| < {b}?",
            f"If G is a group of order {a * b}, show that it has a subgroup of order {a}.", f"Find the degree of the polynomial x^{a} + x^{b}.", f"What's {a}% tip on ${b}.{c}?", f"What is the compound interest on ${a}00 at {b}% over {c} years?", f"how many {thing} at ${a} can i buy with ${b * 10}",
            f"Berechne {a} mal {b} plus {c}.", f"Wie viel Prozent sind {a} von {b * 5}?", f"Löse die Gleichung {a}x + {b} = {c}.", f"Combien font {a} fois {b} ?", f"Résous l'équation {a}x - {b} = 0.", f"¿Cuánto es {a} por {b}?", f"Resuelve la ecuación {a}x + {b} = {c}.", f"{who} tiene {a} manzanas y regala {b}. ¿Cuántas le quedan?",
            f"Quanto fa {a} per {b}?", f"Quanto é {a} dividido por {b}?", f"计算 {a} 乘以 {b} 等于多少？", f"解方程 {a}x + {b} = {c}。", f"{a} かける {b} はいくつですか。", f"Сколько будет {a} умножить на {b}?", f"Решите уравнение {a}x + {b} = {c}.", f"{a} kere {b} kaç eder?",
        )
    )  # fmt: skip


def translation(rng: Rng) -> str:
    language, second = rng.sample(LANGUAGES, 2)
    text = rng.choice(FOREIGN) if rng.random() < 0.4 else passage(rng, rng.choice((1, 1, 2, 4)))
    short = rng.choice(
        (
            "good morning",
            "thank you very much",
            "where is the bathroom",
            "I love you",
            "the bill, please",
            "see you tomorrow",
            "how much is it",
            "cheese",
            "dog",
            "happy birthday",
            "I am lost",
            "excuse me",
        )
    )
    return rng.choice(
        (
            f"Translate to {language}: {text}", f"Translate the following text into {language}:\n\n{text}", f"Please translate this into {language}.\n{text}", f"{text}\n\nTranslate this to {language}.", f"{text}\n\n-> {language}", f'translate "{text}" from {second} to {language}',
            f"How do you say '{short}' in {language}?", f"how would i say {short} in {language}", f"what is {short} in {language}", f"What's the {language} word for {short}?", f"tell me how to say {short} in {language}", f"i need to know how to say {short} in {language}", f"what do people in {rng.choice(PLACES)} say for {short}",
            f"Give me the {language} translation of the paragraph below, keep the tone formal.\n{text}", f"Can you translate this email into {language} for me? {text}", f"Render this in idiomatic {language}: {text}", f"{language} translation please: {text}", f"What does '{text}' mean in {language}?",
            f"Translate this {second} sentence: {text}", f'Translate the JSON values into {language}, keep the keys.\n{{"title": "{text}"}}', f"Localize these app strings for {language} users:\n{text}", f"I need this subtitle in {language}: {text}", f"into {language}: {text}",
            f"Übersetze ins {rng.choice(SPRACHEN)}: {text}", f"Bitte übersetzen Sie den folgenden Text ins {rng.choice(SPRACHEN)}.\n{text}", f"Was heißt '{text}' auf {rng.choice(('Englisch', 'Französisch', 'Spanisch'))}?", f"Kannst du mir das ins {rng.choice(SPRACHEN)} übersetzen? {text}",
            f"Traduis en {rng.choice(LANGUES)} : {text}", f"Pouvez-vous traduire ce texte en {rng.choice(LANGUES)} ?\n{text}", f"Comment dit-on « {short} » en {rng.choice(LANGUES)} ?", f"Traduce al {rng.choice(IDIOMAS)}: {text}", f"¿Cómo se dice '{short}' en {rng.choice(IDIOMAS)}?",
            f"Traduci in {rng.choice(('inglese', 'francese', 'tedesco'))}: {text}", f"Traduza para o {rng.choice(('inglês', 'espanhol', 'francês'))}: {text}", f"Vertaal naar het {rng.choice(('Engels', 'Duits', 'Frans'))}: {text}", f"Przetłumacz na {rng.choice(('angielski', 'niemiecki'))}: {text}",
            f"Переведи на {rng.choice(('английский', 'немецкий', 'французский'))}: {text}", f"把下面的句子翻译成{rng.choice(('英文', '法语', '日语', '中文'))}：{text}", f"请翻译：{text}", f"次の文を{rng.choice(('英語', '日本語', 'フランス語'))}に翻訳してください。{text}", f"다음을 {rng.choice(('영어', '일본어', '한국어'))}로 번역해 주세요: {text}",
            f"Şunu İngilizceye çevir: {text}", f"ترجم إلى الإنجليزية: {text}", f"इसका अंग्रेज़ी में अनुवाद करें: {text}", f"Översätt till {rng.choice(('engelska', 'tyska'))}: {text}",
        )
    )  # fmt: skip


def summary(rng: Rng) -> str:
    text = passage(rng, rng.choice((4, 6, 9, 14, 20)))
    if rng.random() < 0.2:
        text = "\n".join(f"{rng.choice(PEOPLE)}: {passage(rng, 1)}" for _ in range(8))
    n, kind = (
        rng.randrange(1, 9),
        rng.choice(
            (
                "article",
                "text",
                "email",
                "report",
                "meeting transcript",
                "paper",
                "chapter",
                "conversation",
                "thread",
                "document",
                "review",
                "story",
                "passage",
                "notes",
            )
        ),
    )
    return rng.choice(
        (
            f"Summarize the following {kind}:\n\n{text}", f"Summarise this in {n} sentences.\n{text}", f"{text}\n\nTL;DR", f"tl;dr: {text}", f"Give me the key points of this {kind}:\n{text}", f"{text}\n\nSummarize the above {kind} in {n} bullet points.", f"What are the main takeaways?\n\n{text}", f"Condense this {kind} to {n * 20} words: {text}",
            f"Can you give me a short summary of this {kind}? {text}", f"Write an executive summary of the {kind} below.\n\n{text}", f"Write an abstract for the {kind} below\n{text}", f"Shorten this {kind}, keep the essential facts: {text}", f"Here is a {kind}. What is it about, in one sentence?\n{text}", f"Recap the {kind}:\n{text}", f"Boil this down: {text}",
            f"Please provide a concise overview of the {kind} below.\n{text}", f"{text}\n\nIn short?", f"{text}\n\nWhat is the gist of this?", f"Make minutes of this {kind}.\n{text}", f"Summary of the book {rng.choice(('Moby Dick', 'Hamlet', 'The Odyssey', 'Emma', 'Dracula'))} in {n} paragraphs",
            f"Fasse den folgenden Text zusammen:\n{text}", f"Bitte fassen Sie dies in {n} Sätzen zusammen. {text}", f"Résume ce texte en {n} phrases :\n{text}", f"Peux-tu faire un résumé de cet article ? {text}", f"Resume el siguiente texto:\n{text}", f"Haz un resumen de {n} puntos. {text}", f"Riassumi questo articolo: {text}", f"Faça um resumo do texto: {text}",
            f"Vat deze tekst samen: {text}", f"Кратко изложи текст: {text}", f"请总结以下内容：{text}", f"用一句话概括：{text}", f"次の文章を要約してください。{text}", f"다음 글을 요약해 주세요. {text}", f"Bu metni özetle: {text}", f"لخص النص التالي: {text}",
        )
    )  # fmt: skip


def extraction(rng: Rng) -> str:
    text = passage(rng, rng.choice((1, 2, 4, 6, 9)))
    who, place = rng.choice(PEOPLE), rng.choice(PLACES)
    if rng.random() < 0.5:
        text += f" Contact: {who}, {place}, order {rng.randrange(10**5)}, {rng.randrange(1, 29)} May, ${rng.randrange(900)}."
    one, two, three = rng.sample(FIELDS, 3)
    return rng.choice(
        (
            f"Extract all {one} from the following text:\n{text}", f"Extract the {one} and {two} as JSON: {text}", f"{text}\n\nList every {one} mentioned above.", f"From the text below, pull out {one}, {two} and {three}.\n\n{text}", f'Return JSON with the keys "{one}", "{two}".\n{text}', f"Find all {one} in this email: {text}", f"Parse this into a table with columns {one}, {two}, {three}:\n{text}",
            f"Identify the named entities (people, places, organizations) in this sentence: {text}", f"Classify the sentiment of this review as {rng.choice(LABELS)}: {text}", f"Label the following message as {rng.choice(LABELS)}.\n{text}", f"Is this message {rng.choice(LABELS)}?\n\n{text}", f"Which {one} appear in the passage?\n{text}", f"Tag each sentence with its topic: {text}",
            f'Count how many times the word "the" appears in this paragraph: {text}', f"Convert the following records to CSV:\nname: {who}, city: {place}\nname: {rng.choice(PEOPLE)}, city: {rng.choice(PLACES)}", f'Fill in this schema from the text. {{"{one}": str, "{two}": list}}\n{text}', f"Read the invoice and give me the total, the date and the {one}.\n{text}", f"Who is mentioned in this text, and what is their role?\n{text}",
            f"Based only on the document below, what is the {one[:-1]}?\n{text}", f"Get the {one} out of this: {text}", f"Output only the {one}, one per line.\n{text}", f"Categorize this ticket: {rng.choice(LABELS)}. {text}", f"Answer using the context.\nContext: {text}\nQuestion: where was it?\nAnswer:", f"Date,Open,Close\n2022-01-0{rng.randrange(1, 9)},{rng.randrange(99)},{rng.randrange(99)}\nExtract the highest close.",
            f"Which {one} are mentioned here? {text}", f"{text} -> {one}, {two}", f"Turn this into structured data with the fields {one}, {two}: {text}", f"Classify: '{passage(rng, 1)}' -> refund | delivery | other", f"Does this message express anger, fear or joy? '{passage(rng, 1)}'", f"List all {one} in this transcript.\n{text}", f"Give me a JSON array of the {one}: {text}", f"Mark each line as fact or opinion.\n1. {passage(rng, 1)}\n2. {passage(rng, 1)}", f"Lies {rng.choice(('das Datum', 'den Namen', 'die Nummer'))} aus: {text}", f"Relève {rng.choice(('les noms', 'les dates', 'les lieux'))} dans ce texte : {text}", f"¿Qué {rng.choice(('personas', 'fechas', 'lugares'))} se mencionan? {text}", f"列出文中所有的{rng.choice(('公司', '金额', '地点'))}：{text}",
            f"Extrahiere alle Namen und Daten aus dem Text: {text}", f"Welche Personen werden im Text genannt?\n{text}", f"Extrais les noms et les dates du texte suivant : {text}", f"Extrae los nombres y las fechas del texto: {text}", f"Estrai tutti i nomi dal testo: {text}", f"Extraia os nomes e valores do texto: {text}", f"从下面的文本中提取所有人名和日期：{text}", f"次の文章から名前と日付を抽出してください。{text}", f"Извлеки все имена и даты из текста: {text}", f"다음 글에서 이름과 날짜를 추출해 주세요. {text}",
        )
    )  # fmt: skip


def writing(rng: Rng) -> str:
    genre, subject, n = rng.choice(GENRES), rng.choice(SUBJECTS), rng.randrange(2, 9)
    text = passage(rng, rng.choice((1, 2, 4)))
    topic = rng.choice(TOPICS)
    article = "an" if genre[0] in "aeiou" else "a"
    return rng.choice(
        (
            f"Write {article} {genre} about {subject}.", f"write me {article} {genre} on {subject}", f"Compose {article} {genre} for {subject}, in about {n * 50} words.", f"Draft {article} {genre} about {subject}; friendly tone", f"Could you write {article} {genre} that begins with the sentence: {passage(rng, 1)}", f"Create {article} engaging {genre} about {subject}.", f"I need {article} {genre} for {subject}",
            f"Write a {n * 100}-word essay on {topic}.", f"Write an outline for a blog post about {topic}.", f"Rewrite this to sound more professional: {text}", f"Rephrase the following paragraph: {text}", f"Proofread and improve this text:\n{text}", f"Make this email more polite.\n{text}", f"Fix the grammar: {text}", f"{text}\n\nRewrite this in a casual tone.", f"Continue this story: {text}", f"Paraphrase: {text}", f"Correct the spelling and punctuation. {text}",
            f"Write an email to my {rng.choice(('boss', 'landlord', 'teacher', 'team', 'customer', 'neighbour'))} about {subject}.", f"Draft a reply to this message: {text}", f"Help me write a message to {rng.choice(PEOPLE)} about {subject}", f"Come up with {n} titles for {article} {genre} about {subject}.", f"Give me {n} catchy slogans for {subject}", f"Brainstorm names for {subject}", f"Write dialogue between {rng.choice(PEOPLE)} and {rng.choice(PEOPLE)} about {subject}.",
            f"Describe {subject} in vivid, sensory detail.", f"Turn these notes into {article} {genre}: {text}", f"Expand this into a full paragraph: {text}", f"Write lyrics for {article} song about {subject}", f"Edit my cover letter:\n{text}", f"Make it rhyme: {text}", f"Write a review of {subject}", f"Imagine you are writing {article} {genre}. Develop the key points on {topic}.",
            f"Schreibe ein Gedicht über {rng.choice(('den Herbst', 'das Meer', 'die Liebe'))}.", "Schreib eine höfliche E-Mail an meinen Chef.", f"Formuliere diesen Text freundlicher: {text}", f"Écris un poème sur {rng.choice(('la mer', 'l automne', 'la ville'))}.", "Rédige un courriel poli à mon propriétaire.", f"Escribe un cuento sobre {rng.choice(('el mar', 'un dragón', 'la luna'))}.", "Redacta un correo formal para mi jefe.",
            f"Scrivi una poesia {rng.choice(('sul mare', 'sulla luna'))}.", f"Escreva um poema sobre {rng.choice(('o mar', 'a lua'))}.", f"写一首关于{rng.choice(('秋天', '大海', '月亮'))}的诗。", "帮我写一封给老板的邮件。", f"{rng.choice(('海', '秋', '月'))}についての詩を書いてください。", f"Напиши стихотворение про {rng.choice(('осень', 'море', 'луну'))}.", "Напиши вежливое письмо начальнику.", "Deniz hakkında bir şiir yaz.",
        )
    )  # fmt: skip


def question(rng: Rng) -> str:
    topic, topic2 = rng.sample(TOPICS, 2)
    figure, place = rng.choice(FIGURES), rng.choice(PLACES)
    choices = rng.sample(TOPICS, 4)
    lettered = "\n".join(f"{letter}. {one}" for letter, one in zip("ABCD", choices, strict=True))
    return rng.choice(
        (
            f"What is {topic}?", f"Explain {topic} in simple terms.", f"explain {topic} like i'm five", f"How does {topic} work?", f"Why is {topic} important?", f"Who was {figure}?", f"When was {figure} born?", f"What did {figure} contribute to {topic}?", f"What is the capital of {rng.choice(('France', 'Kenya', 'Peru', 'Norway', 'Nepal', 'Chile'))}?",
            f"What are the causes of {topic}?", f"What is the difference between {topic} and {topic2}?", f"Compare {topic} with {topic2}.", f"Describe the history of {topic}.", f"Tell me about {topic}.", f"What role did {topic} play in the 19th century? Justify your answer.", f"Discuss the impact of {topic} on society. List three examples.", f"What are the pros and cons of {topic}?",
            f"Which of the following best describes {topic}?\n{lettered}\nAnswer:", f"{topic[0].upper() + topic[1:]} is most closely related to\n{lettered}\nAnswer:", f"Which one of these is true of {topic}?\n{lettered}\nAnswer:", f"According to {figure}, {topic} leads to\n{lettered}\nAnswer:", f"All of the following are examples of {topic} EXCEPT\n{lettered}\nAnswer:",
            f"how far is {place} from the sea", f"What is the population of {place}?", f"what language do they speak in {place}", f"What happens to the body during {topic}?", f"What are the symptoms of {rng.choice(('flu', 'anemia', 'asthma', 'measles', 'migraine'))}?", f"who invented {rng.choice(('the telephone', 'the light bulb', 'paper', 'the printing press'))}", f"define {rng.choice(('entropy', 'irony', 'hegemony', 'inertia', 'catalyst', 'sovereignty'))}",
            f"what does {rng.choice(('ephemeral', 'esoteric', 'pragmatic', 'ubiquitous', 'candid'))} mean", f"Fill in the blank: {figure} was born in ____.", f"How many {rng.choice(('bones', 'muscles', 'planets', 'continents', 'keys'))} are there in {rng.choice(('the human body', 'the solar system', 'the world', 'a piano'))}?", f"Is it true that {topic} was discovered in {place}?", f"Give me five interesting facts about {topic}.",
            f"Why do {rng.choice(('cats purr', 'leaves change color', 'we yawn', 'birds sing', 'stars twinkle', 'people dream'))}?", f"What books would you recommend about {topic}?", f"What are the legal requirements for {topic} in {place}?", "If all A are B and some B are C, are some A necessarily C?", f"Which word does not belong: {', '.join(rng.sample(THINGS, 4))}?",
            f"Was ist {rng.choice(('Photosynthese', 'Inflation', 'ein Schwarzes Loch', 'die Gewaltenteilung'))}?", f"Erkläre mir {rng.choice(('die Relativitätstheorie', 'den Kalten Krieg', 'das Immunsystem'))}.", f"Wer war {figure}?", f"Qu'est-ce que {rng.choice(('la photosynthèse', 'l inflation', 'le Big Bang'))} ?", f"Explique-moi {rng.choice(('la guerre froide', 'la gravité'))}.", f"Qui était {figure} ?", f"¿Qué es {rng.choice(('la fotosíntesis', 'la inflación', 'un agujero negro'))}?", f"¿Quién fue {figure}?", "¿Por qué es azul el cielo?",
            f"Che cos'è {rng.choice(('la fotosintesi', 'l inflazione'))}?", f"O que é {rng.choice(('fotossíntese', 'inflação'))}?", f"什么是{rng.choice(('光合作用', '通货膨胀', '黑洞'))}？", "为什么天空是蓝色的？", f"{rng.choice(('光合成', 'ブラックホール'))}とは何ですか。", f"Что такое {rng.choice(('фотосинтез', 'инфляция', 'чёрная дыра'))}?", f"Кто такой {figure}?", f"{rng.choice(('광합성', '블랙홀'))}이 무엇인가요?", "Enflasyon nedir?",
        )
    )  # fmt: skip


def chat(rng: Rng) -> str:
    who, place = rng.choice(PEOPLE), rng.choice(PLACES)
    figure, subject = rng.choice(FIGURES), rng.choice(SUBJECTS)
    when = rng.choice(("tomorrow", "on Friday", "at 5 pm", "next week", "tonight"))
    return rng.choice(
        (
            "hi", "hello!", "hey, how are you?", "good morning", f"hi, i'm {who.lower()}", "thanks!", "thank you, that was helpful", "ok", "yes please", "no, not that one", "bye", "lol", "are you a bot?", "what's your name", "where are you from", "do you like music", "what can you do for me", "you're great", "tell me a joke", "i'm bored", "how was your day?", "can you help me?", "go on", "hmm, i don't know", "really?", "never mind",
            f"remind me to call {who} {when}", f"set an alarm for {rng.randrange(1, 12)} am", f"play some {rng.choice(('jazz', 'rock', 'classical music'))}", f"book a table for {rng.randrange(2, 9)} {when}", f"what's the weather like in {place} {when}", "add milk to my shopping list", f"text {who} that i'm late", f"cancel my appointment {when}", "turn the volume up", f"what's on my calendar {when}", f"schedule a meeting with {who} {when}", f"find me a flight to {place}", f"how do i get to {place} from here", "call me a taxi",
            "i lost my card, what should i do?", "why was my payment declined", "my order still hasn't arrived", "i want a refund", "how do i reset my password", "please cancel my subscription", "what's my balance", "why was i charged twice", "how can i change my address", "i can't log in to my account", "when will my new card arrive", "is there a fee for transferring money", "i need to report fraud on my account", f"can i upgrade my ticket to {place}",
            f"Pretend you are {figure}. What do you think of {rng.choice(('smartphones', 'modern art', 'coffee'))}?", "You are a pirate. Answer me like one.", f"Let's role play: you're a shopkeeper in {place} and I am a customer.", f"Act as my {rng.choice(('therapist', 'travel guide', 'coach', 'interviewer', 'doctor', 'chef'))}. I'll begin.", f"Take on the role of {figure} throughout this conversation. First question: are you happy?", f"Imagine yourself as {subject}. How do you feel?",
            f"I feel sad today, {who} and I had a fight.", f"should i text {who.lower()} back or wait?", f"i'm nervous about my interview {when}", "what should i cook tonight?", "any movie recommendations?", f"what should i wear to a wedding in {place}", "i can't decide between two jobs, what do you think?", f"my dog {rng.choice(('died', 'is sick', 'ate my shoe'))} :(", "guess what happened today", "do you think people are good?", "what's your favorite color and why",
            "Hallo, wie geht's?", "Danke, das war hilfreich!", "Guten Morgen", "Erinnere mich morgen an den Termin", "Mir ist langweilig, erzähl mir einen Witz", "Ich habe meine Karte verloren", "Salut, ça va ?", "Merci beaucoup !", "Bonjour, comment tu t'appelles ?", "J'ai perdu ma carte bancaire", "¡Hola! ¿Cómo estás?", "Muchas gracias", "Cuéntame un chiste", "He perdido mi tarjeta", "Ciao, come stai?", "Grazie mille", "Oi, tudo bem?", "Obrigado!", "你好", "谢谢你", "你今天怎么样？", "我的订单还没到", "こんにちは、元気ですか", "ありがとう", "Привет, как дела?", "Спасибо большое", "안녕하세요", "감사합니다", "Merhaba, nasılsın?", "مرحبا كيف حالك",
        )
    )  # fmt: skip


SYSTEMS = {
    "code": ("You are an expert programmer.", "You are a coding assistant. Answer with code.", "You are a senior software engineer reviewing code."),
    "math": ("You are a math tutor.", "Solve the problem step by step.", "You are a calculator."),
    "translation": ("You are a translator.", "Translate everything the user says into French.", "You translate from English to German. Output only the translation."),
    "summary": ("You summarize documents.", "Summarize the user's text in three bullet points.", "You write summaries of meetings."),
    "extraction": ("Extract the fields as JSON.", "You are an information extraction system. Reply in JSON.", "Classify the user's message. Answer with one label."),
    "writing": ("You are a creative writer.", "You are a copywriter.", "You are an editor who improves texts."),
    "question": ("Answer the question.", "You are a knowledgeable teacher.", "The following are multiple choice questions (with answers)."),
    "chat": ("You are a friendly companion.", "You are the support assistant of a bank.", "You are a voice assistant."),
}  # fmt: skip
PLAIN_SYSTEMS = ("", "", "", "", "", "", "You are a helpful assistant.", "You are a helpful, honest assistant.", "Be brief.")
BARE = {
    "translation": lambda rng: rng.choice(FOREIGN) if rng.random() < 0.5 else passage(rng, 2),
    "summary": lambda rng: passage(rng, 9),
    "extraction": lambda rng: passage(rng, 3),
}
"""What stands alone in a message when the system prompt says what to do with it."""


def prompts(
    per_task: int, *, seed: int = 5, code_from: Callable[[str], bool] = lambda stem: True
) -> Iterator[tuple[str, str, str]]:
    """(task, text, system prompt); as many of each task, in a fixed order for a seed and a Python version."""
    rng = random.Random(seed)
    snippets = functions(code_from)
    makers = {
        "math": math,
        "translation": translation,
        "summary": summary,
        "extraction": extraction,
        "writing": writing,
        "question": question,
        "chat": chat,
    }
    for _ in range(per_task):
        for task, systems in SYSTEMS.items():
            text = code(rng, snippets) if task == "code" else makers[task](rng)
            system = rng.choice(systems) if rng.random() < 0.1 else rng.choice(PLAIN_SYSTEMS)
            if task in BARE and rng.random() < 0.06:
                text, system = BARE[task](rng), rng.choice(systems)
            yield task, polite(rng, text), system


def polite(rng: Rng, text: str) -> str:
    """As people write: with a greeting, in lower case, without a full stop."""
    if rng.random() < 0.12:
        text = (
            rng.choice(("Hi! ", "Hello, ", "Please ", "Hey, ", "Can you help? ", "Quick question: ", "I have a task for you. "))
            + text
        )
    if rng.random() < 0.15:
        text = text.lower()
    return text.rstrip(".?") if rng.random() < 0.2 else text
