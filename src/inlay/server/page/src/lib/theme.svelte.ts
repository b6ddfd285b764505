/** Dark or light: as the system says, until it is chosen here. */

const KEY = 'inlay-theme';

class Theme {
  dark = $state(false);

  constructor() {
    const system = matchMedia('(prefers-color-scheme: dark)');
    const kept = localStorage.getItem(KEY);
    this.set(kept ? kept === 'dark' : system.matches);
    system.addEventListener('change', (event) => {
      if (!localStorage.getItem(KEY)) this.set(event.matches);
    });
  }

  toggle(): void {
    this.set(!this.dark);
    localStorage.setItem(KEY, this.dark ? 'dark' : 'light');
  }

  private set(dark: boolean): void {
    this.dark = dark;
    document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  }
}

export const theme = new Theme();
