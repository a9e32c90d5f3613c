// Take the colour mode of Airflow's page around this one, else the one that Airflow stored, else that of the system.
(() => {
  const own = document.documentElement;
  const outer = () => {
    try {
      return window.parent === window ? null : window.parent.document.documentElement;
    } catch {
      return null;
    }
  };
  const stored = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null;
    }
  };
  const apply = () => {
    const around = outer();
    const classes = around ? around.classList : null;
    let mode = classes && classes.contains("dark") ? "dark" : classes && classes.contains("light") ? "light" : stored();
    if (mode !== "dark" && mode !== "light") {
      mode = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    }
    own.dataset.theme = mode;
  };
  apply();
  const around = outer();
  if (around) {
    new MutationObserver(apply).observe(around, { attributes: true, attributeFilter: ["class"] });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
})();
