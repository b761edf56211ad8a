"""JupyterLab in a real browser, on a real kernel: what a person sees and clicks."""
