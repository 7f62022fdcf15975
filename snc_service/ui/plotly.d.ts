// plotly.js comes from the Python package plotly and sets one global.
declare var Plotly: any;
