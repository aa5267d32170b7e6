"""Problems small enough to be exact: two toy objectives of the AdamP paper, and the papers' claims in closed form.

Everything is float64 on the CPU and runs the package's own optimizers, or torch's.
"""
