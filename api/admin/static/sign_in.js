// A link from the terminal carries its code behind the #, which browsers keep to themselves: sign in with it at once.
"use strict";
const code = location.hash.slice(1);
if (/^[A-Za-z0-9_-]{43}$/.test(code) && !document.querySelector(".problem")) {
  history.replaceState(null, "", location.pathname + location.search);
  document.getElementById("credential").value = code;
  document.getElementById("sign-in").requestSubmit();
}
