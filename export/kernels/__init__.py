"""placeholder"""
def status():
    return "not built"
