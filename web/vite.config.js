import { defineConfig } from 'vite';

// Three pages, one origin-absolute `/assets/`: desktop and terminal are served both at the root of a
// computer's own host name and below `/desktop/<id>/` and `/terminal/<id>/`, so relative asset links would break in one of them.
export default defineConfig({
  base: '/',
  build: {
    // noVNC asks the browser about H.264 with a top-level await.
    target: 'es2022',
    // Every asset stays a file: the content security policy forbids inline scripts and styles.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: {
      input: { home: 'index.html', desktop: 'desktop/index.html', terminal: 'terminal/index.html' },
    },
  },
});
