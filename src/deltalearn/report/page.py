def render_page(run, summary):
    return "<html></html>"
