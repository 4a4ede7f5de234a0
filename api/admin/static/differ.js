// What one text has that another has not: a longest common subsequence of their words.
"use strict";
Graft.differ = (() => {
  const MOST = 800; // words of a text that are compared
  const words = (text) => text.split(/(\s+)/).filter(Boolean);

  /** Which of b's words stand in a too, in the same order: their places in b. */
  function shared(a, b) {
    const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    const kept = new Set();
    for (let i = 0, j = 0; i < a.length && j < b.length; )
      if (a[i] === b[j]) kept.add(j++), i++;
      else if (best[i + 1][j] >= best[i][j + 1]) i++;
      else j++;
    return kept;
  }

  /** text as nodes, with a mark around each word that first has not. What is behind the first words is left as it is. */
  return (first, text) => {
    const own = words(text);
    const compared = own.slice(0, MOST);
    const common = shared(words(first).slice(0, MOST), compared);
    const isNew = (word, n) => n < MOST && word.trim() && !common.has(n);
    return own.map((word, n) => (isNew(word, n) ? Graft.make("mark", {}, word) : word));
  };
})();
