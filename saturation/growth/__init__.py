"""How norms grow with the step: laws, their intervals and the words for them."""

from saturation.growth.fit import Curve, Fit, best_law, fit_all, fit_growth, ranked

__all__ = ["Curve", "Fit", "best_law", "fit_all", "fit_growth", "ranked"]
