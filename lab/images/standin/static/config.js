window.CONFIG = {VITE_API_URL: "__VITE_API_URL__"};
