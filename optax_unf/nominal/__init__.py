"""Nominal terms of Eq. 31: orthogonalized momentum, SOAP, and a step size that is found while training."""

from optax_unf.nominal.dimension_numbers import muon_dimension_numbers as muon_dimension_numbers
from optax_unf.nominal.distance import ScaleByDistanceState as ScaleByDistanceState
from optax_unf.nominal.distance import scale_by_distance as scale_by_distance
from optax_unf.nominal.matrices import MatrixTable as MatrixTable
from optax_unf.nominal.matrices import describe_matrices as describe_matrices
from optax_unf.nominal.matrices import find_matrices as find_matrices
from optax_unf.nominal.orthogonal import ScaleByOrthogonalState as ScaleByOrthogonalState
from optax_unf.nominal.orthogonal import dual_norm as dual_norm
from optax_unf.nominal.orthogonal import orthogonal as orthogonal
from optax_unf.nominal.orthogonal import scale_by_orthogonal as scale_by_orthogonal
from optax_unf.nominal.polar import polar_factor as polar_factor
from optax_unf.nominal.soap import Eigenbases as Eigenbases
from optax_unf.nominal.soap import ScaleBySoapState as ScaleBySoapState
from optax_unf.nominal.soap import scale_by_soap as scale_by_soap
from optax_unf.nominal.units import InUnitsState as InUnitsState
from optax_unf.nominal.units import in_units as in_units
from optax_unf.nominal.untuned import orthogonal_prodigy as orthogonal_prodigy
from optax_unf.nominal.untuned import scale_by_found_step as scale_by_found_step
